#!/usr/bin/env bash
# SPDX-License-Identifier: MIT
#
# Moves the installed library, then builds and runs the consumer with the flags from pkg-config, without CMake.
#
# Usage: tests/consume/pkg_config.sh PREFIX
set -euo pipefail

home=$(dirname -- "$(readlink -f -- "${BASH_SOURCE[0]}")")
directory=$(mktemp -d)
trap 'rm -rf -- "$directory"' EXIT
cp -R -- "$1" "$directory/moved"
export PKG_CONFIG_PATH=$directory/moved/share/pkgconfig

cat "$home/consumer.cpp" "$home/devices.cpp" >"$directory/main.cpp"
cd -- "$directory"
# shellcheck disable=SC2046 # The output is several words.
# [readme:pkg_config]
c++ -std=c++20 main.cpp $(pkg-config --cflags --libs asyncverbs)
# [/readme:pkg_config]
./a.out
