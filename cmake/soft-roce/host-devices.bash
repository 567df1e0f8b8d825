# SPDX-License-Identifier: MIT
# shellcheck shell=bash disable=SC2154 # The parts share variables.
#
# The host's own RDMA devices: finds active ports, chooses the GID of each port that suits plain
# verbs and rdma_cm best, and runs the command with them.

host_devices=/sys/class/infiniband

# The kernel may list a device that the caller cannot open, as in a container without
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

# Prints the IPv4 address in a GID. Such a GID ends as in ffff:0a07:0001.
print_gid_address() {
    local digits=${1: -9}
    printf '%d.%d.%d.%d\n' "0x${digits:0:2}" "0x${digits:2:2}" "0x${digits:5:2}" "0x${digits:7:2}"
}

# Prints the GIDs of a port, one per line: rank (1 is best), device, port, index, and the IPv4
# address if the GID has one.
print_gids() {
    local port=$1 index gid type place
    while IFS=: read -r index gid; do
        type=$(cat -- "$port/gid_attrs/types/$index" 2>/dev/null) || type=
        place="$(basename -- "${port%/ports/*}") ${port##*/} $index"
        # Link-local addresses (169.254.0.0/16, fe80::/10) cannot be routed.
        case "$type $gid" in
            "RoCE v2 0000:0000:0000:0000:0000:ffff:a9fe:"*)
                echo "3 $place $(print_gid_address "$gid")" ;;
            "RoCE v2 0000:0000:0000:0000:0000:ffff:"*)
                echo "1 $place $(print_gid_address "$gid")" ;;
            "RoCE v2 fe"[89ab]*)
                echo "4 $place" ;;
            "RoCE v2 "*)
                echo "2 $place" ;;
            *)
                echo "5 $place" ;;
        esac
    done < <(cd -- "$port/gids" && grep -Hsv '^[0:]*$' -- *)
}

# Whether a device is the given one or, if none is given, what --provider asks for: with siw an iWARP
# device (an RNIC).
is_wanted() {
    local device=$1 name=$2 is_iwarp=no
    if [[ -n $name ]]; then
        [[ $device = "$name" ]]
    else
        [[ $(<"$host_devices/$device/node_type") != *RNIC ]] || is_iwarp=yes
        [[ $is_iwarp = yes && $provider = siw || $is_iwarp = no && $provider = rxe ]]
    fi
}

print_active_gids() {
    local device name=$1 port
    for port in "$host_devices"/*/ports/*; do
        device=$(basename -- "${port%/ports/*}")
        if [[ -e $port/state && $(<"$port/state") = *ACTIVE* ]] && is_wanted "$device" "$name" &&
            can_open_device "$device"; then
            print_gids "$port"
        fi
    done
}

# Prints the IPv4 address of the network device below a GID (RoCE), below the port (iWARP) or above
# the RDMA device (InfiniBand).
print_netdev_address() {
    local device=$1 port=$2 index=$3 name
    {
        cat -- "$host_devices/$device/ports/$port/gid_attrs/ndevs/$index" 2>/dev/null ||
            rdma link show "$device/$port" 2>/dev/null | sed -n 's/.* netdev \([^ ]*\).*/\1/p' |
            grep . ||
            ls -- "$host_devices/$device/device/net" 2>/dev/null
    } | while read -r name; do
        ip -4 -oneline address show dev "$name" 2>/dev/null
    done | sed -n 's/.* inet \([0-9.]*\).*/\1/p' | head -n 1
}

# Prints the best GID of each active device that --provider asks for, or of the device with the given
# name, in the same form, best first.
print_best_gids() {
    print_active_gids "${1:-}" | sort -s -n -k 1,1 | awk '!seen[$2]++'
}

# Sets the command's RDMA_* variables from the lines of print_best_gids on standard input.
set_host_environment() {
    local device port index address names=() ports=() indexes=() addresses=()
    while read -r _ device port index address; do
        if [[ -z $address ]]; then
            address=$(print_netdev_address "$device" "$port" "$index") || true
        fi
        names+=("$device") ports+=("$port") indexes+=("$index") addresses+=("${address:--}")
    done
    RDMA_DEVICE=${names[0]} RDMA_PORT=${ports[0]} RDMA_GID_INDEX=${indexes[0]}
    RDMA_ADDRESS=${addresses[0]#-}
    RDMA_DEVICES=${names[*]} RDMA_PORTS=${ports[*]} RDMA_GID_INDEXES=${indexes[*]}
    RDMA_ADDRESSES=${addresses[*]}
}

# Returns 1 if fewer devices are active than --devices asks for.
find_host_devices() {
    local gids
    mapfile -t gids < <(print_best_gids)
    (( ${#gids[@]} >= devices )) || return 1
    set_host_environment < <(printf '%s\n' "${gids[@]:0:devices}")
}

print_host_devices() {
    local port list=
    for port in "$host_devices"/*/ports/*; do
        if [[ -e $port/state ]]; then
            list+="${list:+, }$(basename -- "${port%/ports/*}") port ${port##*/}"
            list+=" ($(sed 's/.*: //' "$port/state"))"
        fi
    done
    echo "${list:-none}"
}

fail_without_host_device() {
    local wanted=$1
    [[ $wanted != */* && -e $host_devices/$wanted ]] ||
        fail "there is no RDMA device $wanted, which SOFT_ROCE names;" \
            "available: $(print_host_devices)"
    can_open_device "$wanted" ||
        fail "cannot open the RDMA device $wanted, which SOFT_ROCE names, in /dev/infiniband"
    fail "no port of the RDMA device $wanted, which SOFT_ROCE names, is active with a GID;" \
        "available: $(print_host_devices)"
}

# Uses the devices with the given names, in that order.
choose_host_devices() {
    local name gid names gids=()
    read -r -a names <<<"$1"
    for name in "${names[@]}"; do
        gid=$(print_best_gids "$name")
        [[ -n $gid ]] || fail_without_host_device "$name"
        gids+=("$gid")
    done
    (( ${#names[@]} == devices )) ||
        fail "--devices asks for $(count "$devices" device), SOFT_ROCE names ${#names[@]}: $1"
    set_host_environment < <(printf '%s\n' "${gids[@]}")
}

# shellcheck disable=SC2317 # Traps call it.
end_host_command() {
    kill -TERM "$host_command" 2>/dev/null || true
    wait "$host_command" 2>/dev/null || true
}

# timeout puts the command into a process group that is not the terminal's, so a trap passes signals
# on.
run_on_host() {
    local status=0 started=$SECONDS name entry environment=()
    export RDMA_DEVICE RDMA_PORT RDMA_GID_INDEX RDMA_ADDRESS
    export RDMA_DEVICES RDMA_PORTS RDMA_GID_INDEXES RDMA_ADDRESSES
    for entry in "${caller_environment[@]}"; do
        [[ $entry != ?*=* ]] || environment+=("$entry")
    done
    for name in RDMA_{DEVICE,PORT,GID_INDEX,ADDRESS,DEVICES,PORTS,GID_INDEXES,ADDRESSES}; do
        environment+=("$name=${!name}")
    done
    # nice -n 0 changes nothing. It accepts a command with a = in its name, and env does not.
    (umask "$caller_umask"
     exec setpriv --pdeathsig TERM timeout --kill-after=10 -- "$timeout" \
         env -i -- "${environment[@]}" /usr/bin/nice -n 0 -- "${command[@]}") </dev/null &
    host_command=$!
    trap_signals end_host_command
    # Suppress bash's message about a command that a signal ended: the exit status shows it.
    { wait "$host_command" || status=$?; } 2>/dev/null
    if (( timeout > 0 && SECONDS - started >= timeout && (status == 124 || status == 137) )); then
        fail "the command did not end within $timeout s"
    fi
    exit "$status"
}
