#!/usr/bin/env bash
# SPDX-License-Identifier: MIT
#
# Builds and runs the examples. Without an RDMA device, it starts a guest with a soft-RoCE device. It installs missing
# packages. Arguments are passed to rc_pingpong, for example: examples/run.sh -n 10000 -s 64
# After --build DIR, it builds in DIR, a build tree that exists, instead of build/examples.

set -euo pipefail

home=$(dirname -- "$(readlink -f -- "${BASH_SOURCE[0]}")")
build=
if [[ ${1:-} = --build ]]; then
    build=$(readlink -e -- "${2:-}") || { printf 'error: --build needs a build tree of CMake\n' >&2; exit 1; }
    shift 2
fi
cd -- "$home/.."
programs=${build:-build/examples}/examples

# start_server TEXT COMMAND...: starts a server in the background and waits until it has written TEXT.
start_server() {
    local text=$1
    shift
    "$@" >"$log" 2>&1 &
    server=$!
    until grep -q "$text" "$log"; do
        kill -0 "$server" 2>/dev/null || { cat "$log" >&2; return 1; }
        sleep 0.1
    done
}

await_server() {
    wait "$server" || { cat "$log" >&2; return 1; }
}

# The part that needs a device. cmake/soft-roce/run calls it with the RDMA_* variables set.
run_on_device() {
    local directory
    log=$(mktemp)
    printf '\n== hello: two queue pairs, one message\n'
    "$programs/hello"
    printf '\n== poll_loop_notifier: five messages, awaited in your own event loop\n'
    "$programs/poll_loop_notifier"
    printf '\n== asio_messages: the same in the event loop of Asio\n'
    "$programs/asio_messages"
    printf '\n== io_uring_loop: the same in a loop on io_uring\n'
    "$programs/io_uring_loop"
    printf '\n== glib_loop: the same in the main loop of GLib\n'
    "$programs/glib_loop"
    printf '\n== libuv_loop: the same in the event loop of libuv\n'
    "$programs/libuv_loop"
    printf '\n== sd_event_loop: the same in sd-event, the event loop of systemd\n'
    "$programs/sd_event_loop"
    printf '\n== rc_pingpong: two processes\n'
    local pingpong=("$programs/rc_pingpong" -d "$RDMA_DEVICE" -i "$RDMA_PORT" -g "$RDMA_GID_INDEX" --chk "$@")
    start_server 'local address' "${pingpong[@]}" # it listens before it writes TEXT
    "${pingpong[@]}" --histogram localhost
    await_server
    printf '\n== rdma_echo: ten connections by IP address, served by one thread\n'
    start_server listening "$programs/rdma_echo" --clients=10
    "$programs/rdma_echo" --connections=10 --count=100 "$RDMA_ADDRESS"
    await_server
    printf '\n== async_rping: RDMA reads and writes\n'
    "$programs/async_rping" -s >"$log" 2>&1 &
    server=$!
    until "$programs/async_rping" -c -vV -C 3 -a "$RDMA_ADDRESS" 2>/dev/null; do # retry until the server listens
        kill -0 "$server" 2>/dev/null || { cat "$log" >&2; return 1; }
        sleep 0.1
    done
    await_server
    printf '\n== rdma_cp: copies a file with RDMA writes\n'
    directory=$(mktemp -d)
    head -c 20000000 /dev/zero >"$directory/zeros"
    mkdir "$directory/received"
    start_server receiving "$programs/rdma_cp" --receive "$directory/received"
    "$programs/rdma_cp" "$directory/zeros" "$RDMA_ADDRESS"
    kill "$server"
    cmp "$directory/zeros" "$directory/received/zeros"
    rm -rf -- "$log" "$directory"
    printf '\n== cores: one executor and one completion queue for each CPU\n'
    "$programs/cores"
    printf '\n== timeouts: a receive with a time limit, and the first of two events\n'
    "$programs/timeouts"
    printf '\n== adopt: the completions of a program in C\n'
    "$programs/adopt"
}

case ${1:-} in
    --on-device)
        shift
        run_on_device "$@"
        exit ;;
    --help | -h)
        sed -n '4,6s/^# //p' "$home/run.sh"
        exit ;;
esac

cmake/install-dependencies.sh cmake make g++ pkg-config libibverbs-dev librdmacm-dev ibverbs-providers \
    libcli11-dev libxxhash-dev libasio-dev liburing-dev libglib2.0-dev libuv1-dev libsystemd-dev
if [[ ! $build ]]; then
    build=$PWD/build/examples
    cmake -S . -B "$build" -DCMAKE_BUILD_TYPE=Release -DASYNCVERBS_BUILD_TESTS=OFF >/dev/null
fi
printf '== Building the examples in %s\n' "$build"
cmake --build "$build" --parallel "$(nproc)"
cmake/soft-roce/run -- "$home/run.sh" --build "$build" --on-device "$@"
