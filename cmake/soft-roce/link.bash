# SPDX-License-Identifier: MIT
# shellcheck shell=bash disable=SC2154 # The parts share variables.
#
# Several guests on one virtual link. A separate process follows each guest, in the same way as a
# single guest. This part joins the guests' network devices, marks their output, and combines their
# exit statuses.

# The link consists of sockets from guest 0's QEMU, the server, to the QEMU of each other guest. The
# sockets are abstract, "$link.1" and so on, so no file is left behind.
link=

# Seconds that the other commands may continue after one has failed: they may still report errors.
failure_bound=10

# A guest can connect only after guest 0 listens (flag 10000).
await_link() {
    local started=$SECONDS
    until grep -q " 00010000 .*@$link\\.$guest\$" /proc/net/unix; do
        (( SECONDS - started < boot_bound )) || fail "guest 0 was not started"
        sleep 0.1
    done
}

# Adds the end named $1 of the socket to guest $2.
add_link_socket() {
    local name=$1 other=$2 server=$3
    qemu_options+=(-netdev
        "stream,id=$name,server=$server,addr.type=unix,addr.abstract=on,addr.path=$link.$other")
}

# With three or more guests, guest 0's QEMU is a hub, which forwards each packet to all others.
add_link_hub() {
    local other
    qemu_options+=(-netdev "hubport,id=link,hubid=0")
    for (( other = 1; other < guests; ++other )); do
        add_link_socket "link$other" "$other" on
        qemu_options+=(-netdev "hubport,id=port$other,hubid=0,netdev=link$other")
    done
}

# An MTU above 4096 allows the largest RDMA MTU. The device needs no boot ROM.
set_link_options() {
    if (( guest > 0 )); then
        await_link
        add_link_socket link "$guest" off
    elif (( guests == 2 )); then
        add_link_socket link 1 on
    else
        add_link_hub
    fi
    qemu_options+=(-device
        "virtio-net-pci,netdev=link,mac=02:00:0a:07:00:0$(( guest + 1 )),host_mtu=4500,romfile=")
}

# While a guest's command runs, the guest's process keeps the write end of a pipe open. The read end
# sees an end of file when all commands have ended. A single guest has /dev/null at both ends.
guest=0
exec {running}>/dev/null {others_run}</dev/null

join_guests() {
    local pipe both
    pipe=$(mktemp -u -t soft-roce.XXXXXX)
    mkfifo -- "$pipe" || fail "cannot create a FIFO in ${TMPDIR:-/tmp}"
    exec {both}<>"$pipe" {running}>&- {others_run}<&-
    # shellcheck disable=SC2094 # It is a FIFO.
    exec {running}>"$pipe" {others_run}<"$pipe" {both}>&-
    rm -f -- "$pipe"
}

# Waits until all commands have ended: the others may still need this end of the link.
await_other_guests() {
    local status=129
    exec {running}>&-
    while (( status > 128 )); do
        kill -0 $$ 2>/dev/null || exit 137
        status=0
        read -r -t 1 -u "$others_run" || status=$?
    done
}

# Prefixes each line with the number of its guest.
mark() {
    LC_ALL=C exec sed -u "s/^/guest $guest: /"
}

# Starts the process that follows the guest, and adds it to followers[] and its markers to marks[].
start_marked_guest() {
    local out err
    exec {out}> >(mark {running}>&-)
    marks+=($!)
    exec {err}> >(mark >&2 {running}>&- {out}>&-)
    marks+=($!)
    (start_guest; follow_guest) >&"$out" 2>&"$err" {out}>&- {err}>&- &
    followers[guest]=$!
    exec {out}>&- {err}>&-
}

# shellcheck disable=SC2317 # Traps call it.
end_guests() {
    kill -TERM "${followers[@]}" 2>/dev/null || true
    wait "${followers[@]}" 2>/dev/null || true
    end_relays "${marks[@]}"
}

# Waits up to failure_bound seconds for all given followers, then ends them.
end_others() {
    local other
    for (( i = 0; i < failure_bound * 10; ++i )); do
        kill -0 "$@" 2>/dev/null || return 0
        sleep 0.1
    done
    kill -TERM "$@" 2>/dev/null || true
}

# Exits with the status of the first command that failed. A guest whose command succeeds stays until
# all commands have ended. So if the first guest to end has succeeded, the others end soon.
follow_guests() {
    local ended other status=0
    wait -n -p ended "${followers[@]}" || status=$?
    for guest in "${!followers[@]}"; do
        [[ ${followers[guest]} != "$ended" ]] || unset "followers[guest]"
    done
    if (( status != 0 )); then
        end_others "${followers[@]}"
    fi
    for other in "${followers[@]}"; do
        if (( status == 0 )); then
            wait "$other" || status=$?
        else
            wait "$other" 2>/dev/null || true
        fi
    done
    wait "${marks[@]}" || true
    exit "$status"
}

run_in_guests() {
    local followers=() marks=()
    prepare_guest
    say "starting $guests guests with Linux $(<"$kernel_directory/release"), each with" \
        "$(print_device_count), on one link"
    link=soft-roce.$(</proc/sys/kernel/random/uuid)
    join_guests
    for (( guest = 0; guest < guests; ++guest )); do
        start_marked_guest
    done
    exec {running}>&-
    trap_signals end_guests
    follow_guests
}
