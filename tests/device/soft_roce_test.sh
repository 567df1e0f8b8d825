#!/usr/bin/env bash
# SPDX-License-Identifier: MIT
#
# Tests cmake/soft-roce/run: its errors for wrong options; three devices in a guest, and the same
# devices as "the host's own"; three guests with two devices each, in which one command fails; two
# guests with two soft-iWARP devices each. The script runs itself again in the guests.

# shellcheck disable=SC2153 # The runner sets RDMA_….

set -euo pipefail

test=$(readlink -f -- "${BASH_SOURCE[0]}")
run=$(dirname -- "$test")/../../cmake/soft-roce/run
PATH=$PATH:/usr/sbin:/sbin

fail() {
    printf 'error: %s\n' "$*" >&2
    exit 1
}

expect() {
    [[ $1 = "$2" ]] || fail "expected \"$2\", got \"$1\""
}

expect_error() {
    local message=$1 output status=0
    output=$("$run" "${@:2}" 2>&1) || status=$?
    [[ $status = 1 && $output = *"soft-roce: error: $message"* ]] ||
        fail "run ${*:2}: expected \"$message\", got status $status and \"$output\""
}

test_refusals() {
    expect_error "--devices takes a whole number from 1 to 8, not '0'" --devices 0 -- true
    expect_error "--devices takes a whole number from 1 to 8, not '9'" --devices=9 -- true
    expect_error "--devices takes a whole number from 1 to 8, not '2x'" --devices 2x -- true
    expect_error "--guests takes a whole number from 1 to 8, not '9'" --guests 9 -- true
    expect_error "--guests takes a whole number from 1 to 8, not ''" --guests= -- true
    expect_error "--provider takes rxe or siw, not 'mlx5'" --provider mlx5 -- true
    expect_error "--deterministic takes one guest" --deterministic --guests 3 -- true
    expect_error "--devices takes a value" --devices
    expect_error "no command given" --devices 2 --guests 3
}

# A cache entry that was cut short, or that something else made, is not used.
test_cache() (
    # shellcheck disable=SC1091
    source "$(dirname -- "$run")/kernel.bash"
    directory=$(mktemp -d)
    trap 'rm -rf -- "$directory"' EXIT
    cd -- "$directory"
    for name in kernel initramfs.cpio link.cpio release; do
        echo "the $name" >"$name"
    done
    ! is_intact "$directory" || fail "an entry without checksums is taken for intact"
    sha256sum kernel initramfs.cpio link.cpio release >checksums
    is_intact "$directory" || fail "an intact entry is not taken for one"
    for name in kernel initramfs.cpio link.cpio release checksums; do
        cp -- "$name" saved
        truncate -s -1 -- "$name"
        ! is_intact "$directory" || fail "an entry with a $name cut short is taken for intact"
        mv -- saved "$name"
    done
    ! is_intact "$directory/none" || fail "a missing entry is taken for intact"
)

# --- in a guest ---

iterations=20

serve() {
    ibv_rc_pingpong -e -d "$1" -g "$RDMA_GID_INDEX" -p "${2:-18515}" -n "$iterations" >/dev/null
}

# Retries until the server listens.
ping() {
    local device=$1 address=$2 port=${3:-18515} words
    until words=$(ibv_rc_pingpong -e -d "$device" -g "$RDMA_GID_INDEX" -p "$port" -n "$iterations" \
        "$address" 2>&1); do
        [[ $words = *"Couldn't connect"* ]] || fail "$device to $address: $words"
        sleep 0.2
    done
}

# rping reports the disconnect as an error.
serve_rping() {
    rping -s -a "$1" -C 3 2>/dev/null || true
}

# From the first address to the second, at which a server may not be listening yet. A client that
# soft-iWARP refuses does not always end.
ping_rping() {
    until timeout 10 rping -c -I "$1" -a "$2" -C 3 2>/dev/null; do
        sleep 0.2
    done
}

# Counts the packets that a network device sends, with the netem qdisc that can also drop them.
count_packets() {
    tc qdisc add dev "$1" root netem limit 10000
}

expect_packets() {
    local sent
    sent=$(tc -s qdisc show dev "$1" | sed -n 's/.*Sent .* bytes \([0-9]*\) pkt.*/\1/p')
    (( sent >= iterations )) || fail "$1 has sent $sent packets, expected at least $iterations"
}

in_guest_with_devices() {
    local server port=18515 pair
    expect "$RDMA_DEVICE $RDMA_PORT $RDMA_GID_INDEX $RDMA_ADDRESS" "rxe0 1 1 10.7.0.1"
    expect "$RDMA_DEVICES" "rxe0 rxe1 rxe2"
    expect "$TAR_OPTIONS" --none
    unset TAR_OPTIONS XZ_OPT MODPROBE_OPTIONS
    expect "$RDMA_PORTS $RDMA_GID_INDEXES" "1 1 1 1 1 1"
    expect "$RDMA_ADDRESSES" "10.7.0.1 10.7.1.1 10.7.2.1"
    expect "${RDMA_PEER_ADDRESSES:-none}" none

    # With verbs, from each device to the next; with rdma_cm, from the last device to the first.
    count_packets roce1
    for pair in "rxe0 rxe1" "rxe1 rxe2" "rxe2 rxe0"; do
        port=$(( port + 1 ))
        serve "${pair#* }" "$port" &
        server=$!
        ping "${pair% *}" localhost "$port"
        wait "$server"
        echo "from ${pair/ / to }"
    done
    expect_packets roce1
    serve_rping 10.7.0.1 &
    server=$!
    ping_rping 10.7.2.1 10.7.0.1
    wait "$server"
    echo "connected"
    as_host_devices
    exit 3
}

# Runs the runner in the guest. It takes the guest's devices for the host's own.
as_host_devices() {
    unset SOFT_ROCE
    # shellcheck disable=SC2016 # The shell that the runner starts expands it.
    local show='echo "$RDMA_DEVICE $RDMA_ADDRESS; $RDMA_DEVICES; $RDMA_PORTS;" \
        "$RDMA_GID_INDEXES; $RDMA_ADDRESSES"'
    expect "$("$run" --quiet --devices 2 -- sh -c "$show")" \
        "rxe0 10.7.0.1; rxe0 rxe1; 1 1; 1 1; 10.7.0.1 10.7.1.1"
    expect "$(SOFT_ROCE="rxe2 rxe0" "$run" --devices 2 -- sh -c "$show")" \
        "rxe2 10.7.2.1; rxe2 rxe0; 1 1; 1 1; 10.7.2.1 10.7.0.1"
    SOFT_ROCE=rxe1 expect_error "--devices asks for 2 devices, SOFT_ROCE names 1: rxe1" \
        --devices 2 -- true
    SOFT_ROCE="rxe1 rxe7" expect_error "there is no RDMA device rxe7" --devices 2 -- true
    ip link set roce2 down
    until [[ $(<"/sys/class/infiniband/rxe2/ports/1/state") = *DOWN* ]]; do
        sleep 0.1
    done
    SOFT_ROCE="rxe1 rxe2" expect_error "no port of the RDMA device rxe2" --devices 2 -- true
    # Fewer than three are active, so the runner starts a guest, which needs a kernel in the cache.
    XDG_CACHE_HOME=/proc expect_error "the cache directory /proc/soft-roce" --devices 3 -- true
    echo "taken as the host's"
}

# A ring of pings, one after the other: from the second device of each guest to the first device of the
# next guest.
in_three_guests() {
    local number=$SOFT_ROCE_GUEST server peers
    read -r -a peers <<<"$RDMA_PEER_ADDRESSES"
    expect "$RDMA_ADDRESSES" "10.7.0.$(( number + 1 )) 10.7.1.$(( number + 1 ))"
    expect "${#peers[*]} ${RDMA_PEER_ADDRESS:-none}" "2 none"
    count_packets roce1
    serve rxe0 &
    server=$!
    case $number in
        0)
            ping rxe1 "${peers[0]}"
            wait "$server" ;;
        1)
            wait "$server"
            ping rxe1 "${peers[1]}" ;;
        2)
            wait "$server"
            ping rxe1 "${peers[0]}" ;;
    esac
    expect_packets roce1
    echo "pinged and was pinged"
    case $number in
        0) exit 7 ;;
        1) exec sleep 3600 ;; # until the runner ends it
    esac
}

# Across the link from guest 1 to guest 0, to a device with another number.
in_two_siw_guests() {
    local number=$SOFT_ROCE_GUEST
    expect "$RDMA_DEVICE $RDMA_PORT $RDMA_GID_INDEX $RDMA_ADDRESS" "siw0 1 0 10.7.0.$(( number + 1 ))"
    expect "$RDMA_DEVICES; $RDMA_GID_INDEXES" "siw0 siw1; 0 0"
    if (( number == 0 )); then
        serve_rping 10.7.1.1
    else
        ping_rping 10.7.0.2 10.7.1.1
    fi
    # The runner in the guest: an iWARP device is the host's own device only for --provider siw.
    unset SOFT_ROCE
    # shellcheck disable=SC2016 # The shell that the runner starts expands it.
    expect "$("$run" --quiet --provider siw -- sh -c 'echo "$RDMA_DEVICE $RDMA_ADDRESS"')" \
        "siw0 $RDMA_ADDRESS"
    XDG_CACHE_HOME=/proc expect_error "the cache directory /proc/soft-roce" -- true
    echo "connected"
}

# --- in both ---

expect_lines() {
    local output=$1 line
    for line in "${@:2}"; do
        grep -qx "$line" <<<"$output" || fail "there is no line \"$line\" in: $output"
    done
}

test_devices() {
    local output status=0
    # No variable of the shell or of a tool changes what the runner does; the command gets them all.
    output=$(SOFT_ROCE=guest BASH_ENV=/dev/full POSIXLY_CORRECT=1 TAR_OPTIONS=--none XZ_OPT=--none \
        MODPROBE_OPTIONS=--none qemu=1 "$run" --devices 3 --timeout 400 -- \
        env -u BASH_ENV -u POSIXLY_CORRECT "$test" in_guest_with_devices) || status=$?
    expect_lines "$output" "from rxe0 to rxe1" "from rxe1 to rxe2" "from rxe2 to rxe0" \
        connected "taken as the host's"
    expect "$status" 3
}

test_guests() {
    local output status=0
    output=$("$run" --guests 3 --devices 2 --timeout 400 -- "$test" in_three_guests) || status=$?
    expect_lines "$output" "guest 0: pinged and was pinged" "guest 1: pinged and was pinged" \
        "guest 2: pinged and was pinged"
    expect "$status" 7
}

test_siw() {
    local output
    output=$("$run" --provider siw --guests 2 --devices 2 --timeout 400 -- "$test" in_two_siw_guests)
    expect_lines "$output" "guest 0: connected" "guest 1: connected"
}

if (( $# > 0 )); then
    "$@"
else
    for part in test_refusals test_cache test_devices test_guests test_siw; do
        "$part"
        echo "$part: passed"
    done
fi
