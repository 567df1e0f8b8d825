#!/usr/bin/env bash
# Builds and runs all tests: unit tests on this machine, device tests on an RDMA device, soft-RoCE if
# the machine has no other.
#
# Usage: tests/run.sh [PRESET...]      presets of CMakePresets.json, by default: debug
#
# All tests that need no device run with each sanitizer. Device tests run without a sanitizer; on
# soft-RoCE and without the conformance suite, with Clang's address sanitizer; and those with several
# threads with the thread sanitizer, too.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

(($# > 0)) || set -- debug

packages=(cmake make g++ git pkg-config libibverbs-dev librdmacm-dev catch2 ibverbs-utils
    rdmacm-utils libxxhash-dev libcli11-dev libasio-dev libboost-dev libssl-dev liburing-dev
    libglib2.0-dev libuv1-dev libsystemd-dev python3 doxygen meson)
[[ " $*" != *" clang-"* ]] || packages+=(clang-19 libclang-rt-19-dev libc++-19-dev libc++abi-19-dev)
cmake/install-dependencies.sh "${packages[@]}"

# The first run fetches the guest's kernel. Do it here, or the first test would seem slow.
cmake/soft-roce/run -- true

for preset; do
    printf '\n== %s\n' "$preset"
    cmake --preset "$preset" > /dev/null
    cmake --build --preset "$preset" --parallel "$(nproc)"
    case $preset in
        asan) printf 'left out: packaging tests, device tests, the explorer and Boost.Asio\n' ;;
        tsan | clang-tsan)
            printf 'left out: packaging tests, the explorer, Boost.Asio, device tests with one thread\n' ;;
        clang-asan)
            printf 'left out: packaging tests, standalone Asio, and on devices conformance and iWARP\n' ;;
    esac
    # One more than there are CPUs: device tests wait for half of their time.
    ctest --preset "$preset" --parallel $(($(nproc) + 1))
done
