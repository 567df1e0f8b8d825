#!/usr/bin/env bash
# Builds and runs all tests: unit tests here, device tests on a soft-RoCE device.
#
# Usage: tests/run.sh [PRESET...]      presets of CMakePresets.json, by default: debug
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

(($# > 0)) || set -- debug

packages=(cmake make g++ git pkg-config libibverbs-dev librdmacm-dev catch2 ibverbs-utils
    rdmacm-utils libxxhash-dev libcli11-dev libasio-dev libboost-dev liburing-dev libglib2.0-dev
    python3 doxygen meson)
[[ " $*" != *" clang-"* ]] || packages+=(clang-19 libclang-rt-19-dev libc++-19-dev libc++abi-19-dev)
cmake/install-dependencies.sh "${packages[@]}"

# Before the tests, so that it can be seen what takes long: the kernel is fetched the first time.
cmake/soft-roce/run -- true

for preset; do
    printf '\n== %s\n' "$preset"
    cmake --preset "$preset" > /dev/null
    cmake --build --preset "$preset" --parallel "$(nproc)"
    left_out=()
    if [[ $preset == *san ]]; then
        printf 'packaging tests are left out: they start compilers, which no sanitizer watches\n'
        left_out+=(package)
    fi
    if [[ $preset == clang-tsan ]]; then
        printf 'device tests are left out: under the TSan of Clang they have not been tried yet\n'
        left_out+=(device)
    fi
    ctest --preset "$preset" --parallel "$(nproc)" ${left_out:+--label-exclude "$(IFS='|'; echo "${left_out[*]}")"}
done
