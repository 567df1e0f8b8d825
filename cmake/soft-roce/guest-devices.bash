# SPDX-License-Identifier: MIT
# shellcheck shell=bash disable=SC2154 # The variables come from the host, in $job/settings.
#
# The guest's RDMA devices: makes them and the network devices that they send through, and describes
# them in the command's environment[].

# On RoCE, GID 0 is made from the link-local address and GID 1 from the IPv4 address. An iWARP port
# has one GID, which is its MAC address.
gid_index=1
if [[ $provider = siw ]]; then
    gid_index=0
fi

# Each guest has the devices rxe0, rxe1 and so on, or siw0, siw1 and so on. Device D of guest G has
# the address 10.7.D.(G+1). Devices with the same number share a subnet, as on one rail of a real network.
print_address() {
    echo "10.7.$1.$(( $2 + 1 ))"
}

# Prints the MAC address of a network device. The argument is the two-digit number of its RDMA
# device, or ff for the device below the macvlans.
print_mac() {
    printf '02:00:0a:07:%s:%02x\n' "$1" "$(( guest + 1 ))"
}

# The guest's PATH starts with the directory of busybox, whose ip does not support macvlan. Skip it.
add_macvlan() {
    local base=$1 number=$2
    PATH=${PATH#*:} ip link add link "$base" name "roce$number" address "$(print_mac "0$number")" \
        type macvlan mode bridge || fail "cannot create the network device roce$number"
    ip link set "roce$number" up
}

# A single RDMA device sends through the guest's end of the link, or through a dummy device if there
# is no link. Several RDMA devices send through macvlans on that device, which joins them like a
# switch.
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

# With the route, packets to a device with another number use the link as well. Without it, the
# kernel's connection manager would reject packets from such a device.
add_address() {
    local number=$1 address=$2
    ip address add "$address/24" dev "roce$number"
    if (( devices > 1 )); then
        ip route add 10.7.0.0/16 dev "roce$number" metric "$(( 100 + number ))"
    fi
}

# The GID of an address appears shortly after the address is set.
has_gid() {
    local gid=$1/gids/$gid_index digits
    digits=$(printf '0a07:%02x%02x' "$number" "$(( guest + 1 ))")
    [[ -e $gid && $(<"$gid") = *:ffff:$digits ]]
}

is_active() {
    [[ -e $1/state && $(<"$1/state") = *ACTIVE ]]
}

await_device() {
    local number=$1 port=/sys/class/infiniband/$provider$1/ports/1
    for _ in {1..1000}; do
        if is_active "$port" && { [[ $provider = siw ]] || has_gid "$port"; }; then
            return
        fi
        sleep 0.01
    done
    fail "the port of the device $provider$number is not active, or has no GID for its address"
}

make_rdma_devices() {
    local number
    if (( devices > 1 )); then
        # Packets between two devices of one guest arrive from outside with a source address of the
        # same guest. The kernel would drop them as forged without accept_local. With arp_ignore,
        # only the device that has an address answers ARP requests for it.
        echo 1 >/proc/sys/net/ipv4/conf/all/accept_local
        echo 1 >/proc/sys/net/ipv4/conf/all/arp_ignore
    fi
    make_network_devices
    for (( number = 0; number < devices; ++number )); do
        add_address "$number" "$(print_address "$number" "$guest")"
        rdma link add "$provider$number" type "$provider" netdev "roce$number" ||
            fail "cannot create the device $provider$number"
    done
    for (( number = 0; number < devices; ++number )); do
        await_device "$number"
    done
    echo "$(print_address 0 "$guest") soft-roce" >>/etc/hosts
}

add_devices_to_environment() {
    local number names=() ports=() gid_indexes=() addresses=()
    for (( number = 0; number < devices; ++number )); do
        names+=("$provider$number") ports+=(1) gid_indexes+=("$gid_index")
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
