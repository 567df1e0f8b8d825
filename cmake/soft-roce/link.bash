# SPDX-License-Identifier: MIT
# shellcheck shell=bash disable=SC2154 # Variables of one part are used in another.
#
# Two guests on one virtual link. Each is followed by a process of its own, as a single one is; this
# part joins their network devices, marks what they write, and makes one exit status of two.

# The link is a socket of QEMU's, guest 0 being its server. It is an abstract one, so that nothing
# of it stays behind.
link=

# How long the one command may go on when the other has failed: it may have something to say.
failure_bound=10

# Guest 1 can connect only when guest 0 listens (flag 10000).
await_link() {
    local started=$SECONDS
    until grep -q " 00010000 .*@$link\$" /proc/net/unix; do
        (( SECONDS - started < boot_bound )) || fail "the other guest was not started"
        sleep 0.1
    done
}

# An MTU above 4096 gives RDMA its largest one. The device needs no boot ROM.
set_link_options() {
    local server=on
    if (( guest == 1 )); then
        await_link
        server=off
    fi
    qemu_options+=(
        -netdev "stream,id=link,server=$server,addr.type=unix,addr.abstract=on,addr.path=$link"
        -device "virtio-net-pci,netdev=link,mac=02:00:0a:07:00:0$(( guest + 1 )),host_mtu=4500,romfile="
    )
}

# While a guest's command runs, its process holds the one end of a pipe open: the other end sees an
# end of file when both have ended. A single guest has /dev/null at both ends.
guest=0
exec {running}>/dev/null {others_run}</dev/null

join_guests() {
    local pipe both
    pipe=$(mktemp -u -t soft-roce.XXXXXX)
    mkfifo -- "$pipe" || fail "no FIFO can be made in ${TMPDIR:-/tmp}"
    exec {both}<>"$pipe" {running}>&- {others_run}<&-
    exec {running}>"$pipe" {others_run}<"$pipe" {both}>&-
    rm -f -- "$pipe"
}

# The other command may still need this end of the link.
await_other_guest() {
    local status=129
    exec {running}>&-
    while (( status > 128 )); do
        kill -0 $$ 2>/dev/null || exit 137
        status=0
        read -r -t 1 -u "$others_run" || status=$?
    done
}

# Says of each line where it comes from.
mark() {
    LC_ALL=C exec sed -u "s/^/guest $guest: /"
}

# Sets the process that follows the guest, and adds to marks[].
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

end_followers() {
    kill -TERM "${followers[@]}" 2>/dev/null || true
    wait "${followers[@]}" 2>/dev/null || true
}

# shellcheck disable=SC2317 # It is called by traps.
end_two_guests() {
    end_followers
    end_relays "${marks[@]}"
}

# Gives the other follower the time that it may take, and ends it.
end_other() {
    local other=$1
    for (( i = 0; i < failure_bound * 10; ++i )); do
        kill -0 "$other" 2>/dev/null || return 0
        sleep 0.1
    done
    kill -TERM "$other" 2>/dev/null || true
}

# Ends as that command ended which failed first.
follow_two_guests() {
    local ended other status=0
    wait -n -p ended "${followers[@]}" || status=$?
    other=${followers[0]}
    if [[ $ended = "$other" ]]; then
        other=${followers[1]}
    fi
    if (( status != 0 )); then
        end_other "$other"
        wait "$other" 2>/dev/null || true
    else
        wait "$other" || status=$?
    fi
    wait "${marks[@]}" || true
    exit "$status"
}

run_in_two_guests() {
    local followers=() marks=()
    prepare_guest
    say "starting two guests with Linux $(<"$kernel_directory/release"), a soft-RoCE device each," \
        "on one link"
    link=soft-roce.$(</proc/sys/kernel/random/uuid)
    join_guests
    for guest in 0 1; do
        start_marked_guest
    done
    exec {running}>&-
    trap_signals end_two_guests
    follow_two_guests
}
