# SPDX-License-Identifier: MIT
# shellcheck shell=bash disable=SC2154 # Variables of one part are used in another.
#
# The host's own RDMA device: finding an active port, and its GID that serves plain verbs and
# rdma_cm best, and running the command with them.

devices=/sys/class/infiniband

# A device that the kernel shows but the caller cannot open is of no use, as in a container without
# /dev/infiniband.
can_open_device() {
    local device=$1 name node
    for name in /sys/class/infiniband_verbs/*/ibdev; do
        node=/dev/infiniband/$(basename -- "${name%/ibdev}")
        if [[ -e $name && $(<"$name") = "$device" && -r $node && -w $node ]]; then
            return 0
        fi
    done
    return 1
}

# The IPv4 address in a GID, which ends like ffff:0a07:0001.
print_gid_address() {
    local digits=${1: -9}
    printf '%d.%d.%d.%d\n' "0x${digits:0:2}" "0x${digits:2:2}" "0x${digits:5:2}" "0x${digits:7:2}"
}

# Prints the GIDs of a port, a line each: how well it serves (1 is best), device, port, index, and
# its IPv4 address if it has one.
print_gids() {
    local port=$1 index gid type place
    while IFS=: read -r index gid; do
        type=$(cat -- "$port/gid_attrs/types/$index" 2>/dev/null) || type=
        place="$(basename -- "${port%/ports/*}") ${port##*/} $index"
        case "$type $gid" in
            "RoCE v2 0000:0000:0000:0000:0000:ffff:"*)
                echo "1 $place $(print_gid_address "$gid")" ;;
            "RoCE v2 "*)
                echo "2 $place" ;;
            *)
                echo "3 $place" ;;
        esac
    done < <(cd -- "$port/gids" && grep -Hsv '^[0:]*$' -- *)
}

print_active_gids() {
    local port
    for port in "$devices"/*/ports/*; do
        if [[ -e $port/state && $(<"$port/state") = *ACTIVE* ]] &&
            can_open_device "$(basename -- "${port%/ports/*}")"; then
            print_gids "$port"
        fi
    done
}

# The IPv4 address of the network device below a GID (RoCE) or above the RDMA device (InfiniBand).
print_netdev_address() {
    local device=$1 port=$2 index=$3 name
    {
        cat -- "$devices/$device/ports/$port/gid_attrs/ndevs/$index" 2>/dev/null ||
            ls -- "$devices/$device/device/net" 2>/dev/null
    } | while read -r name; do
        ip -4 -oneline address show dev "$name" 2>/dev/null
    done | sed -n 's/.* inet \([0-9.]*\).*/\1/p' | head -n 1
}

# Sets RDMA_DEVICE, RDMA_PORT, RDMA_GID_INDEX and RDMA_ADDRESS for the device given, or for any.
find_host_device() {
    local found rank wanted=${1:-}
    found=$(print_active_gids | awk -v wanted="$wanted" 'wanted == "" || $2 == wanted' |
        sort -s -n -k 1,1 | head -n 1)
    [[ -n $found ]] || return 1
    read -r rank RDMA_DEVICE RDMA_PORT RDMA_GID_INDEX RDMA_ADDRESS <<<"$found"
    if (( rank > 1 )); then
        RDMA_ADDRESS=$(print_netdev_address "$RDMA_DEVICE" "$RDMA_PORT" "$RDMA_GID_INDEX") || true
    fi
}

print_host_devices() {
    local port list=
    for port in "$devices"/*/ports/*; do
        if [[ -e $port/state ]]; then
            list+="${list:+, }$(basename -- "${port%/ports/*}") port ${port##*/}"
            list+=" ($(sed 's/.*: //' "$port/state"))"
        fi
    done
    echo "${list:-none}"
}

choose_host_device() {
    local wanted=$1
    find_host_device "$wanted" && return
    [[ $wanted != */* && -e $devices/$wanted ]] ||
        fail "there is no RDMA device $wanted, which SOFT_ROCE names;" \
            "there is: $(print_host_devices)"
    can_open_device "$wanted" ||
        fail "the RDMA device $wanted, which SOFT_ROCE names, cannot be opened in /dev/infiniband"
    fail "no port of the RDMA device $wanted, which SOFT_ROCE names, is active with a GID;" \
        "there is: $(print_host_devices)"
}

# shellcheck disable=SC2317 # It is called by traps.
end_host_command() {
    kill -TERM "$host_command" 2>/dev/null || true
    wait "$host_command" 2>/dev/null || true
}

# timeout makes the command a process group that is not the terminal's, so signals are passed on.
run_on_host() {
    local status=0 started=$SECONDS
    export RDMA_DEVICE RDMA_PORT RDMA_GID_INDEX RDMA_ADDRESS
    setpriv --pdeathsig TERM timeout --kill-after=10 -- "$timeout" "${command[@]}" </dev/null &
    host_command=$!
    trap_signals end_host_command
    # bash tells of a command that a signal has ended; its status does as well.
    { wait "$host_command" || status=$?; } 2>/dev/null
    if (( timeout > 0 && SECONDS - started >= timeout && (status == 124 || status == 137) )); then
        fail "the command did not end within $timeout s"
    fi
    exit "$status"
}
