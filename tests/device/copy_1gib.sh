#!/usr/bin/env bash
# SPDX-License-Identifier: MIT
#
# rdma_cp copies 1 GiB on a soft-RoCE device. During the copy, this test kills and restarts the receiver, then the
# sender. In the end, the files must be equal. The test takes some minutes, so it is not part of tests/run.sh.
#
# Usage: tests/device/copy_1gib.sh [BUILD]     a build tree with examples/rdma_cp, by default build/release
set -euo pipefail

home=$(dirname -- "$(readlink -f -- "${BASH_SOURCE[0]}")")

# Prints the size of the incomplete file.
partial_size() {
    stat -c %s "$directory"/to/.file.partial 2>/dev/null || echo 0
}

await_bytes() {
    until (($(partial_size) > $1)); do
        kill -0 "$sender" || exit 1
        sleep 0.1
    done
    printf '%s bytes have arrived\n' "$(partial_size)"
}

start_receiver() {
    "$program" --receive "$directory/to" &
    receiver=$!
}

on_device() {
    program=$1
    directory=$(mktemp -d)
    mkdir "$directory/to"
    head -c 1G /dev/urandom >"$directory/file"
    start_receiver
    sleep 1
    "$program" "$directory/file" "$RDMA_ADDRESS" &
    sender=$!
    await_bytes 300000000
    printf 'killing the receiver\n'
    kill -KILL "$receiver"
    start_receiver
    await_bytes 600000000
    printf 'killing the sender\n'
    kill -KILL "$sender"
    sleep 1
    "$program" "$directory/file" "$RDMA_ADDRESS"
    kill "$receiver"
    cmp "$directory/file" "$directory/to/file"
    [[ $(ls -A "$directory/to") = file ]]
    rm -rf -- "$directory"
    printf '1 GiB has arrived, and the files are equal\n'
}

if [[ ${1:-} = --on-device ]]; then
    on_device "$2"
else
    build=$(readlink -e -- "${1:-$home/../../build/release}")
    "$home/../../cmake/soft-roce/run" --memory 6000 -- "$home/copy_1gib.sh" --on-device "$build/examples/rdma_cp"
fi
