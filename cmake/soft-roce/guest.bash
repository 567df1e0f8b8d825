# SPDX-License-Identifier: MIT
# shellcheck shell=bash disable=SC2154 # The parts share variables.
#
# The host's side of a guest: starts QEMU, passes the command in and its output and exit status out,
# and fails with a clear error if there is no exit status.
#
# A second cpio archive, appended to the cached initramfs, contains the command. The command's two
# outputs arrive unchanged through two virtio-serial ports. A third port carries the guest's
# reports, one per line:
#   started                      the guest is up, the command starts
#   exit STATUS STDOUT STDERR    the command has ended; STDOUT and STDERR are the numbers of bytes
#                                that it wrote to its two outputs
#   failed TEXT                  the guest cannot run the command

boot_bound=180
kvm_boot_bound=30
# Additional boot time, in seconds, for each further guest that boots at the same time.
further_guest_bound=90

# Writes to the given directory: the guest's init, and the files that guest-run reads.
write_job() {
    local job=$1 directory=$PWD user group groups files terminals='' window=''
    user=$(id -u) group=$(id -g) groups=$(id -G | tr ' ' ,) files=$(ulimit -n)
    if [[ -t 2 ]]; then
        terminals=2
        window=$(stty size <&2)
    fi
    if [[ -t 1 ]]; then
        terminals=1$terminals
        { window=$(stty size <&3); } 3<&1
    fi
    mkdir -- "$job/job" "$job/job/bin"
    declare -p directory user group groups files terminals window output caller_umask devices \
        guests guest provider >"$job/job/settings"
    printf '%s\0' "${caller_environment[@]}" >"$job/job/environment"
    printf '%s\0' "${command[@]}" >"$job/job/arguments"
    install -m 755 -- "$home/guest-run" "$home/guest-devices.bash" "$job/job"
    install -m 755 -- "$home/guest-init" "$job/init"
}

write_initrd() {
    local job=$1
    write_job "$job"
    cp -- "$kernel_directory/initramfs.cpio" "$job/initrd"
    if (( devices > 1 || guests > 1 )); then
        cat -- "$kernel_directory/link.cpio" >>"$job/initrd"
    fi
    if [[ $provider = siw ]]; then
        cat -- "$kernel_directory/siw.cpio" >>"$job/initrd"
    fi
    (cd -- "$job" && find init job | cpio -o -H newc --quiet) >>"$job/initrd"
}

set_qemu_options() {
    # After a panic or an oops the kernel reboots at once. With -no-reboot, QEMU then exits.
    local parameters="console=ttyS0 quiet panic=-1 oops=panic"
    # Skip the kernel's timer check: it fails if the guest gets no CPU for a while.
    parameters+=" no_timer_check"
    # Disable features that are slow in emulation and not needed here.
    parameters+=" mitigations=off no5lvl cryptomgr.notests random.trust_cpu=1"
    if [[ $deterministic = yes ]]; then
        # Idle time is skipped up to the guest's next timer, even while the guest waits for the
        # host's files. nohz=off keeps a periodic tick. Without it, time jumps by minutes, and time
        # limits expire.
        parameters+=" nohz=off nowatchdog nokaslr norandmaps"
        qemu_options=(-accel "tcg,thread=single" -icount "shift=0,sleep=off" -rtc clock=vm)
        qemu_options+=(-seed 1 -smp 1 -cpu max)
    else
        parameters+=" softlockup_panic=1 sysctl.kernel.watchdog_thresh=60"
        parameters+=" sysctl.kernel.hung_task_panic=1 sysctl.kernel.hung_task_timeout_secs=300"
        if [[ $accelerator = kvm ]]; then
            qemu_options=(-accel kvm -smp "$cpus" -cpu host)
        else
            qemu_options=(-accel "tcg,thread=multi" -smp "$cpus" -cpu max)
        fi
    fi
    qemu_options+=(
        -nodefaults -no-user-config -nographic -no-reboot -m "$memory"
        -kernel "$kernel_directory/kernel" -initrd "/dev/fd/$initrd" -append "$parameters"
        -chardev "file,id=console,path=/dev/fd/$console,append=on" -serial chardev:console
        -device virtio-serial-pci
        -chardev "file,id=stdout,path=/dev/fd/$stdout_port"
        -device "virtserialport,chardev=stdout,name=stdout"
        -chardev "file,id=stderr,path=/dev/fd/$stderr_port"
        -device "virtserialport,chardev=stderr,name=stderr"
        -chardev "file,id=reports,path=/dev/fd/$reports_port"
        -device "virtserialport,chardev=reports,name=reports"
        -virtfs "local,path=/,mount_tag=root,security_model=none,readonly=on,multidevs=remap"
    )
    if [[ -n $output ]]; then
        qemu_options+=(-virtfs
            "local,path=${output//,/,,},mount_tag=output,security_model=none,multidevs=remap")
    fi
    if (( guests > 1 )); then
        set_link_options
    fi
}

# Copies the guest's output from standard input to standard output. Prints the number of bytes on
# standard error when it ends and on SIGUSR1.
relay() {
    LC_ALL=C exec dd bs=64K
}

# The job's files are removed before QEMU starts. QEMU, the relays and this script use open
# descriptors, so no file is left behind even if the run is killed. QEMU makes its descriptors
# non-blocking, but the caller's outputs must not change. Therefore relays copy from QEMU's pipes to
# the caller's outputs.
start_guest() {
    local job
    job=$(mktemp -d -t soft-roce.XXXXXX) || fail "cannot create a temporary directory"
    # shellcheck disable=SC2064 # Expand the name now: the trap runs after the function.
    trap "rm -rf -- ${job@Q}" EXIT
    write_initrd "$job" || fail "cannot write the files for the guest in $job"
    mkfifo -- "$job/reports"
    exec {initrd}<"$job/initrd" {console}<>"$job/console"
    exec {reports_port}<>"$job/reports"
    exec {reports}<"$job/reports"
    exec {stdout_count}<>"$job/stdout.count" {stderr_count}<>"$job/stderr.count"
    rm -rf -- "$job"
    trap end_guest EXIT
    trap_signals end_guest

    exec {stdout_port}> >(relay 2>&"$stdout_count" {reports_port}>&- {running}>&-)
    stdout_relay=$!
    exec {stderr_port}> >(relay >&2 2>&"$stderr_count" {reports_port}>&- {stdout_port}>&- \
        {running}>&-)
    stderr_relay=$!
    set_qemu_options
    setpriv --pdeathsig KILL qemu-system-x86_64 "${qemu_options[@]}" </dev/null >&"$console" 2>&1 \
        {running}>&- &
    qemu=$!
    exec {stdout_port}>&- {stderr_port}>&- {reports_port}>&- {initrd}<&-
}

end_qemu() {
    if [[ -n ${qemu:-} ]]; then
        kill -KILL "$qemu" 2>/dev/null || true
        wait "$qemu" 2>/dev/null || true
        qemu=
    fi
}

relays_live() {
    kill -0 "$stdout_relay" 2>/dev/null && kill -0 "$stderr_relay" 2>/dev/null
}

# The relays end after QEMU, unless the reader of their output does not read it.
end_guest() {
    end_qemu
    end_relays "$stdout_relay" "$stderr_relay"
}

end_relays() {
    local relay
    for relay; do
        for _ in {1..20}; do
            kill -0 "$relay" 2>/dev/null || break
            sleep 0.1
        done
        kill -KILL "$relay" 2>/dev/null || true
    done
}

# Prints the guest's console without the firmware's lines and without control sequences.
print_console() {
    sed -E 's/\x1b(\[[?0-9;]*[A-Za-z]|c)//g; s/\r//g; /^SeaBIOS/d; s/^Booting from ROM\.*//' \
        "/dev/fd/$console" | grep -a .
}

# Fails, and prints the last lines of the guest's console and the kernel's panic message, if any.
fail_with_console() {
    local reason
    end_guest
    print_console | tail -n 40 | sed 's/^/soft-roce:   | /' >&2 || true
    reason=$(print_console | sed -n 's/.*\(Kernel panic.*\)/: \1/p' | head -n 1) || true
    fail "$1$reason"
}

# Reads the next report into report[]. Returns 1 if QEMU has ended, 2 after the given seconds.
read_report() {
    local bound=$1 started=$SECONDS line='' part status
    while true; do
        status=0
        read -r -t 1 -u "$reports" part || status=$?
        line+=$part # if the second passes in the middle of a line, read returns part of it
        if (( status == 0 )); then
            read -r -a report <<<"$line"
            return 0
        fi
        (( status > 128 )) || return 1
        (( SECONDS - started < bound )) || return 2
        # The reader has closed the output, as "| head" does. Exit as if by SIGPIPE.
        relays_live || exit 141
        # With several guests, this is a child process. It must not outlive the main process.
        kill -0 $$ 2>/dev/null || exit 137
    done
}

follow_boot() {
    local bound=$boot_bound status=0 how=
    if [[ $accelerator = kvm && $deterministic = no ]]; then
        bound=$kvm_boot_bound
        how=" with SOFT_ROCE_ACCEL=kvm; SOFT_ROCE_ACCEL=tcg works on any host"
    fi
    bound=$(( bound + further_guest_bound * (guests - 1) ))
    if (( timeout > 0 && timeout < bound )); then
        bound=$timeout
    fi
    read_report "$bound" || status=$?
    case $status in
        1) fail_with_console "the guest died while booting$how" ;;
        2) fail_with_console "the guest did not boot within $bound s$how" ;;
    esac
}

follow_command() {
    local bound=1000000000 status=0
    if (( timeout > 0 )); then
        bound=$(( timeout - (SECONDS - guest_started) ))
    fi
    read_report "$bound" || status=$?
    case $status in
        1) fail_with_console "the guest died while the command ran" ;;
        2) fail_with_console "the command did not end within $timeout s" ;;
    esac
}

# Waits until a relay has written all bytes that the command wrote. QEMU discards its buffered
# output when it is ended.
wait_for_relay() {
    local relay=$1 count=$2 expected=$3 written
    while kill -USR1 "$relay" 2>/dev/null; do
        sleep 0.02
        written=$(sed -n 's/^\([0-9]*\) bytes.*/\1/p' "/dev/fd/$count" | tail -n 1)
        (( ${written:-0} < expected )) || break
    done
}

# Exits with the exit status of the command.
follow_guest() {
    local report=() guest_started=$SECONDS
    follow_boot
    if [[ ${report[0]} = started ]]; then
        follow_command
    fi
    [[ ${report[0]} = exit ]] ||
        fail_with_console "the guest cannot run the command: ${report[*]:1}"
    wait_for_relay "$stdout_relay" "$stdout_count" "${report[2]:-0}"
    wait_for_relay "$stderr_relay" "$stderr_count" "${report[3]:-0}"
    if (( report[1] == 0 )); then
        await_other_guests
    fi
    end_qemu
    wait "$stdout_relay" "$stderr_relay" || true
    exit "${report[1]}"
}

prepare_guest() {
    [[ $(uname -m) = x86_64 ]] || fail "a guest needs an x86_64 host; this host is $(uname -m)"
    if [[ $accelerator = kvm && $deterministic = no ]]; then
        [[ -r /dev/kvm && -w /dev/kvm ]] ||
            fail "SOFT_ROCE_ACCEL is kvm, but /dev/kvm is missing or not accessible"
    fi
    PATH=$PATH:/usr/sbin:/sbin
    install_packages
    find_kernel
    if [[ $provider = siw ]]; then
        find_siw
    fi
}

print_device_count() {
    local -A names=([rxe]=soft-RoCE [siw]=soft-iWARP)
    count "$devices" "${names[$provider]} device"
}

run_in_guest() {
    prepare_guest
    say "starting a guest with Linux $(<"$kernel_directory/release") and $(print_device_count)"
    start_guest
    follow_guest
}
