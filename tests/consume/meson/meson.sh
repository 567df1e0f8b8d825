#!/usr/bin/env bash
# SPDX-License-Identifier: MIT
#
# Creates a Meson project in DIRECTORY that has the library as a subproject, and builds and runs the consumer.
#
# Usage: tests/consume/meson/meson.sh DIRECTORY
set -euo pipefail

home=$(dirname -- "$(readlink -f -- "${BASH_SOURCE[0]}")")
rm -rf -- "$1"
mkdir -p -- "$1/subprojects"
cp -- "$home/meson.build" "$home/../consumer.cpp" "$home/../devices.cpp" "$1"
ln -s -- "$(readlink -f -- "$home/../../..")" "$1/subprojects/asyncverbs"
cd -- "$1"
meson setup build
meson compile -C build
build/consumer
