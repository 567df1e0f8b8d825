# SPDX-License-Identifier: MIT
# shellcheck shell=bash disable=SC2154 # The variables come from the host, in $job/settings.
#
# The guest's RDMA devices: making them and the network devices that they send through, and telling
# the command of them in environment[].

gid_index=1

# Each guest has the devices rxe0, rxe1 and so on. Device D of guest G has the address 10.7.D.(G+1):
# devices of one number are neighbours, as on a rail of a real network.
print_address() {
    echo "10.7.$1.$(( $2 + 1 ))"
}

# A network device's address on the link, by the number of its RDMA device; ff is below all of them.
print_mac() {
    printf '02:00:0a:07:%s:%02x\n' "$1" "$(( guest + 1 ))"
}

# The guest has busybox's ip first, which knows no macvlan.
add_macvlan() {
    local base=$1 number=$2
    PATH=${PATH#*:} ip link add link "$base" name "roce$number" address "$(print_mac "0$number")" \
        type macvlan mode bridge || fail "the network device roce$number cannot be made"
    ip link set "roce$number" up
}

# The one of a single device is the guest's end of the link, or a dummy where there is no link.
# Several are macvlans on that: the link, or the dummy, joins them as a switch would.
make_network_devices() {
    local base=roce0 mac=00 number
    if (( devices > 1 )); then
        base=link0 mac=ff
    fi
    ip link set lo up
    if (( guests > 1 )); then
        ip link set eth0 name "$base" || fail "the guest has no network device"
    else
        ip link add "$base" type dummy
    fi
    ip link set "$base" address "$(print_mac "$mac")" mtu 4500 up
    for (( number = 0; devices > 1 && number < devices; ++number )); do
        add_macvlan "$base" "$number"
    done
}

# The route takes what a device sends to one of another number to the link as well. Without it, the
# kernel's connection manager would turn down what comes from there.
add_address() {
    local number=$1 address=$2
    ip address add "$address/24" dev "roce$number"
    if (( devices > 1 )); then
        ip route add 10.7.0.0/16 dev "roce$number" metric "$(( 100 + number ))"
    fi
}

# Addresses settle after a moment.
await_gid() {
    local number=$1 gid=/sys/class/infiniband/rxe$1/ports/1/gids/$gid_index digits
    digits=$(printf '0a07:%02x%02x' "$number" "$(( guest + 1 ))")
    for _ in {1..1000}; do
        if [[ -e $gid && $(<"$gid") = *:ffff:$digits ]]; then
            return
        fi
        sleep 0.01
    done
    fail "the soft-RoCE device rxe$number has no GID of its address"
}

make_rdma_devices() {
    local number
    if (( devices > 1 )); then
        # Packets between two devices of one guest are no forgeries, though they come from outside
        # with a source of its own; and only the device that has an address answers for it.
        echo 1 >/proc/sys/net/ipv4/conf/all/accept_local
        echo 1 >/proc/sys/net/ipv4/conf/all/arp_ignore
    fi
    make_network_devices
    for (( number = 0; number < devices; ++number )); do
        add_address "$number" "$(print_address "$number" "$guest")"
        rdma link add "rxe$number" type rxe netdev "roce$number" ||
            fail "the soft-RoCE device rxe$number cannot be made"
    done
    for (( number = 0; number < devices; ++number )); do
        await_gid "$number"
    done
    echo "$(print_address 0 "$guest") soft-roce" >>/etc/hosts
}

add_devices_to_environment() {
    local number names=() ports=() gid_indexes=() addresses=()
    for (( number = 0; number < devices; ++number )); do
        names+=("rxe$number") ports+=(1) gid_indexes+=("$gid_index")
        addresses+=("$(print_address "$number" "$guest")")
    done
    environment+=("RDMA_DEVICE=${names[0]}" "RDMA_PORT=${ports[0]}")
    environment+=("RDMA_GID_INDEX=$gid_index" "RDMA_ADDRESS=${addresses[0]}")
    environment+=("RDMA_DEVICES=${names[*]}" "RDMA_PORTS=${ports[*]}")
    environment+=("RDMA_GID_INDEXES=${gid_indexes[*]}" "RDMA_ADDRESSES=${addresses[*]}")
}

add_peers_to_environment() {
    local number peers=()
    for (( number = 0; number < guests; ++number )); do
        (( number == guest )) || peers+=("$(print_address 0 "$number")")
    done
    environment+=("SOFT_ROCE_GUEST=$guest" "RDMA_PEER_ADDRESSES=${peers[*]}")
    if (( guests == 2 )); then
        environment+=("RDMA_PEER_ADDRESS=${peers[0]}")
    fi
}
