#!/usr/bin/env bash
# SPDX-License-Identifier: MIT
#
# Builds and runs the consumer without CMake, by what pkg-config says of the installed library, which was moved since.
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
# shellcheck disable=SC2046 # They are several words.
# [readme:pkg_config]
c++ -std=c++20 main.cpp $(pkg-config --cflags --libs asyncverbs)
# [/readme:pkg_config]
./a.out
