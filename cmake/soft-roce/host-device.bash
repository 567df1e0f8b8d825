# SPDX-License-Identifier: MIT
# shellcheck shell=bash
#
# The host's own RDMA device: finding a port that is up and a GID that rdma_cm and plain verbs can both use, and
# running the command with it.

devices=/sys/class/infiniband

# A device that the kernel shows but no process can open, as in a container without /dev/infiniband, is no device.
can_open_device() {
    local node
    for node in "$devices/$1/device/infiniband_verbs"/*; do
        if [[ -r /dev/infiniband/${node##*/} && -w /dev/infiniband/${node##*/} ]]; then
            return 0
        fi
    done
    return 1
}

# The IPv4 address in a GID such as 0000:0000:0000:0000:0000:ffff:0a07:0001.
print_gid_address() {
    local gid=$1
    [[ $gid =~ ^0000:0000:0000:0000:0000:ffff:(..)(..):(..)(..)$ ]] || return 1
    printf '%d.%d.%d.%d\n' "0x${BASH_REMATCH[1]}" "0x${BASH_REMATCH[2]}" "0x${BASH_REMATCH[3]}" "0x${BASH_REMATCH[4]}"
}

print_port_address() {
    local netdev
    for netdev in "$devices/$1/device/net"/*; do
        [[ -e $netdev ]] || continue
        ip -4 -oneline address show dev "${netdev##*/}" 2>/dev/null | sed -n 's|.* inet \([0-9.]*\).*|\1|p' | head -n 1
        return
    done
}

# Sets the environment for a GID of the port of the wanted type: "RoCE v2" with an IPv4 address, or any GID at all.
find_gid() {
    local port=$1 wanted=$2 file gid type address=
    for file in "$port/gids"/*; do
        gid=$(cat "$file" 2>/dev/null) || continue
        [[ ${gid//[0:]/} ]] || continue
        type=$(cat "$port/gid_attrs/types/${file##*/}" 2>/dev/null) || type=
        if [[ $wanted = ipv4 ]]; then
            [[ $type = "RoCE v2" ]] && address=$(print_gid_address "$gid") || continue
        elif [[ $wanted = roce2 && $type != "RoCE v2" ]]; then
            continue
        fi
        RDMA_DEVICE=$(basename "${port%/ports/*}")
        RDMA_PORT=${port##*/}
        RDMA_GID_INDEX=${file##*/}
        RDMA_ADDRESS=${address:-$(print_port_address "$RDMA_DEVICE")}
        return 0
    done
    return 1
}

# Finds the best GID of all active ports: of the device given, or of any device.
find_host_device() {
    local wanted port
    for wanted in ipv4 roce2 any; do
        for port in "$devices"/${1:-*}/ports/*; do
            [[ -e $port/state && $(<"$port/state") = *ACTIVE* ]] || continue
            can_open_device "$(basename "${port%/ports/*}")" || continue
            if find_gid "$port" "$wanted"; then
                return 0
            fi
        done
    done
    return 1
}

print_host_devices() {
    local port list=
    for port in "$devices"/*/ports/*; do
        [[ -e $port/state ]] || continue
        list+="${list:+, }$(basename "${port%/ports/*}") port ${port##*/} ($(sed 's/.*: //' "$port/state"))"
    done
    echo "${list:-none}"
}

choose_host_device() {
    [[ $1 != */* && -e $devices/$1 ]] ||
        fail "SOFT_ROCE asks for the device $1, which the host does not have; it has: $(print_host_devices)"
    find_host_device "$1" && return
    can_open_device "$1" || fail "the device $1 cannot be opened: /dev/infiniband lacks it, or it is not accessible"
    fail "SOFT_ROCE asks for the device $1, which has no active port; the host has: $(print_host_devices)"
}

run_on_host() {
    export RDMA_DEVICE RDMA_PORT RDMA_GID_INDEX RDMA_ADDRESS
    local bound=() status=0 started=$SECONDS
    setpriv --pdeathsig TERM timeout --kill-after=10 -- "$timeout" "${command[@]}" </dev/null &
    local child=$!
    trap 'kill -TERM "$child" 2>/dev/null; wait "$child"; exit 130' INT
    trap 'kill -TERM "$child" 2>/dev/null; wait "$child"; exit 143' TERM HUP
    wait "$child" || status=$?
    if (( timeout > 0 && SECONDS - started >= timeout && (status == 124 || status == 137) )); then
        fail "the command did not end within $timeout s"
    fi
    exit "$status"
}
