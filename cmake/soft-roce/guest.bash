# SPDX-License-Identifier: MIT
# shellcheck shell=bash
#
# The guest, seen from the host: starting QEMU, passing the command in and its output and exit status out, and ending
# in a clear error if no exit status comes.
#
# The command travels in a second cpio archive behind the cached initramfs. Its output comes through virtio-serial
# ports, byte for byte; a third port carries the guest's reports, a line each:
#   started                      the guest is up, the command starts
#   exit STATUS STDOUT STDERR    the command has ended, and has written so many bytes to its two outputs
#   failed TEXT                  the guest cannot run the command

boot_bound=180
kvm_boot_bound=30

# Writes the guest's init and what it goes by below the directory given.
write_job() {
    local job=$1 directory=$PWD user group groups files terminals='' window=''
    user=$(id -u) group=$(id -g) groups=$(id -G | tr ' ' ,) files=$(ulimit -n)
    if [[ -t 1 ]]; then
        terminals+=1
        window=$(stty size <&1)
    fi
    if [[ -t 2 ]]; then
        terminals+=2
        window=$(stty size <&2)
    fi
    mkdir -- "$job/job"
    declare -p directory user group groups files terminals window output caller_umask >"$job/job/settings"
    printf '%s\0' "${caller_environment[@]}" >"$job/job/environment"
    printf '%s\0' "${command[@]}" >"$job/job/arguments"
    install -m 755 -- "$home/guest-run" "$job/job/guest-run"
    install -m 755 -- "$home/guest-init" "$job/init"
}

write_initrd() {
    local job=$1
    write_job "$job"
    cp -- "$kernel_directory/initramfs.cpio" "$job/initrd"
    (cd -- "$job" && find init job | cpio -o -H newc --quiet) >>"$job/initrd"
}

# Copies what the guest writes to the output given, and writes how much it was to standard error, when it ends or gets
# SIGUSR1.
relay() {
    LC_ALL=C exec dd bs=64K
}

set_qemu_options() {
    # A kernel that has lost its way ends (-no-reboot), and is not left to limp on.
    local parameters="console=ttyS0 quiet panic=-1 oops=panic"
    # What follows is not needed here, and takes long in emulation.
    parameters+=" mitigations=off no5lvl cryptomgr.notests random.trust_cpu=1"
    if [[ $deterministic = yes ]]; then
        # Time leaps while the guest waits for the host's files, so a watchdog would bark at nothing.
        parameters+=" nowatchdog nokaslr norandmaps"
        qemu_options=(-accel "tcg,thread=single" -icount "shift=0,sleep=off" -rtc clock=vm -seed 1 -smp 1 -cpu max)
    else
        parameters+=" softlockup_panic=1 sysctl.kernel.watchdog_thresh=60"
        parameters+=" sysctl.kernel.hung_task_panic=1 sysctl.kernel.hung_task_timeout_secs=300"
        qemu_options=(-accel "tcg,thread=multi" -smp "$cpus" -cpu max)
        if [[ $accelerator = kvm ]]; then
            qemu_options=(-accel kvm -smp "$cpus" -cpu host)
        fi
    fi
    qemu_options+=(
        -nodefaults -no-user-config -nographic -no-reboot -m "$memory"
        -kernel "$kernel_directory/kernel" -initrd "/dev/fd/$initrd" -append "$parameters"
        -chardev "file,id=console,path=/dev/fd/$console,append=on" -serial chardev:console
        -device virtio-serial-pci
        -chardev "file,id=stdout,path=/dev/fd/$stdout_port" -device "virtserialport,chardev=stdout,name=stdout"
        -chardev "file,id=stderr,path=/dev/fd/$stderr_port" -device "virtserialport,chardev=stderr,name=stderr"
        -chardev "file,id=reports,path=/dev/fd/$reports_port" -device "virtserialport,chardev=reports,name=reports"
        -virtfs "local,path=/,mount_tag=root,security_model=none,readonly=on,multidevs=remap"
    )
    if [[ -n $output ]]; then
        qemu_options+=(-virtfs "local,path=${output//,/,,},mount_tag=output,security_model=none,multidevs=remap")
    fi
}

# The job's files are removed before QEMU starts: it, the relays and this script go on with open descriptors. So
# nothing is left behind, however the run ends. QEMU opens the descriptors anew and makes its copies non-blocking;
# the relays stand between those and the host's own outputs, which must stay as they are.
start_guest() {
    local job
    job=$(mktemp -d -t soft-roce.XXXXXX) || fail "no temporary directory can be made"
    # shellcheck disable=SC2064 # The name is needed when the function has been left.
    trap "rm -rf -- ${job@Q}" EXIT
    write_initrd "$job" || fail "the files of the job cannot be written in $job"
    mkfifo -- "$job/reports"
    exec {initrd}<"$job/initrd" {console}<>"$job/console"
    exec {reports_port}<>"$job/reports"
    exec {reports}<"$job/reports"
    exec {stdout_count}<>"$job/stdout.count" {stderr_count}<>"$job/stderr.count"
    rm -rf -- "$job"
    trap stop_guest EXIT
    trap 'stop_by_signal INT' INT
    trap 'stop_by_signal TERM' TERM
    trap 'stop_by_signal HUP' HUP

    exec {stdout_port}> >(relay 2>&"$stdout_count" {reports_port}>&-)
    stdout_relay=$!
    exec {stderr_port}> >(relay >&2 2>&"$stderr_count" {reports_port}>&- {stdout_port}>&-)
    stderr_relay=$!
    set_qemu_options
    setpriv --pdeathsig KILL qemu-system-x86_64 "${qemu_options[@]}" </dev/null >&"$console" 2>&1 &
    qemu=$!
    exec {stdout_port}>&- {stderr_port}>&- {reports_port}>&- {initrd}<&-
}

stop_guest() {
    if [[ -n ${qemu:-} ]]; then
        kill -KILL "$qemu" 2>/dev/null || true
        wait "$qemu" 2>/dev/null || true
        qemu=
    fi
}

# The relays end by themselves when QEMU has ended, unless nobody reads what they write.
stop_relays() {
    for _ in {1..20}; do
        kill -0 "$stdout_relay" "$stderr_relay" 2>/dev/null || break
        sleep 0.1
    done
    kill -KILL "$stdout_relay" "$stderr_relay" 2>/dev/null || true
}

# Ends as the signal would have ended any program, for the caller to see.
stop_by_signal() {
    stop_guest
    kill -KILL "$stdout_relay" "$stderr_relay" 2>/dev/null || true
    trap - EXIT "$1"
    kill "-$1" $$
}

print_console() {
    sed -E 's/\x1b(\[[?0-9;]*[A-Za-z]|c)//g; s/\r//g' "/dev/fd/$console" | grep -a .
}

# Fails with the last lines of the guest's console and, if its kernel said so, with the reason.
fail_with_console() {
    local reason
    stop_guest
    stop_relays
    print_console | tail -n 40 | sed 's/^/soft-roce:   | /' >&2 || true
    reason=$(print_console | sed -n 's/.*\(Kernel panic.*\)/: \1/p' | head -n 1) || true
    fail "$1$reason"
}

# Reads the next report into report[]; returns 1 if QEMU has ended, 2 if the number of seconds given has passed.
read_report() {
    local bound=$1 started=$SECONDS line status
    while true; do
        status=0
        read -r -t 1 -u "$reports" line || status=$?
        if (( status == 0 )); then
            read -r -a report <<<"$line"
            return 0
        fi
        (( status > 128 )) || return 1
        (( SECONDS - started < bound )) || return 2
        # Whoever read the output has gone away, as "| head" does: as SIGPIPE would have ended the command.
        kill -0 "$stdout_relay" 2>/dev/null && kill -0 "$stderr_relay" 2>/dev/null || exit 141
    done
}

follow_boot() {
    local bound=$1 status=0
    read_report "$bound" || status=$?
    case $status in
        1) fail_with_console "the guest died while booting" ;;
        2) fail_with_console "the guest did not boot within $bound s" ;;
    esac
}

follow_command() {
    local bound=$1 status=0
    read_report "$bound" || status=$?
    case $status in
        1) fail_with_console "the guest died while the command ran" ;;
        2) fail_with_console "the command did not end within $timeout s" ;;
    esac
}

# Waits until a relay has written as much as the guest has: QEMU, when it ends, forgets what it still holds.
wait_for_relay() {
    local relay=$1 count=$2 expected=$3 written
    while kill -USR1 "$relay" 2>/dev/null; do
        sleep 0.02
        written=$(sed -n 's/^\([0-9]*\) bytes.*/\1/p' "/dev/fd/$count" | tail -n 1)
        (( ${written:-0} < expected )) || return 0
    done
}

# Ends as the command ended.
follow_guest() {
    local bound=$boot_bound report started=$SECONDS forever=1000000000
    (( timeout > 0 )) || timeout=$forever
    if [[ $accelerator = kvm ]]; then
        bound=$kvm_boot_bound
    fi
    follow_boot "$(( bound < timeout ? bound : timeout ))"
    if [[ ${report[0]} = started ]]; then
        follow_command "$(( timeout - (SECONDS - started) ))"
    fi
    [[ ${report[0]} = exit ]] || fail_with_console "the guest cannot run the command: ${report[*]:1}"
    wait_for_relay "$stdout_relay" "$stdout_count" "${report[2]:-0}"
    wait_for_relay "$stderr_relay" "$stderr_count" "${report[3]:-0}"
    stop_guest
    wait "$stdout_relay" "$stderr_relay" || true
    exit "${report[1]}"
}

run_in_guest() {
    [[ $(uname -m) = x86_64 ]] || fail "a guest is emulated on x86_64 only; this is $(uname -m)"
    PATH=$PATH:/usr/sbin:/sbin
    install_packages
    find_kernel
    say "starting a guest with Linux $(<"$kernel_directory/release") and a soft-RoCE device"
    start_guest
    follow_guest
}
