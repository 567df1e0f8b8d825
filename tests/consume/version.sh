#!/usr/bin/env bash
# SPDX-License-Identifier: MIT
#
# Checks that every place that states a version states the version in version.hpp.
#
# Usage: tests/consume/version.sh BUILD PREFIX
set -euo pipefail

source=$(dirname -- "$(readlink -f -- "${BASH_SOURCE[0]}")")/../..
build=$1 prefix=$2

number=$(printf '#include <asyncverbs/version.hpp>\nASYNCVERBS_VERSION\n' | c++ -x c++ -E -P -I "$source/include" -)
version=$((number / 10000)).$((number / 100 % 100)).$((number % 100))

expect() { # WHAT VERSION
    printf '%-12s %s\n' "$1" "$2"
    [[ $2 == "$version" ]] || { printf '%s states %s, but version.hpp states %s\n' "$1" "$2" "$version"; exit 1; }
}

read_version() { # FILE SED-EXPRESSION
    sed -nE "$2" "$1"
}

expect CMake "$(read_version "$build/CMakeCache.txt" 's/^CMAKE_PROJECT_VERSION:STATIC=//p')"
expect find_package \
    "$(read_version "$prefix/share/cmake/asyncverbs/asyncverbsConfigVersion.cmake" 's/^set\(PACKAGE_VERSION "(.*)"\)/\1/p')"
expect pkg-config "$(PKG_CONFIG_PATH=$prefix/share/pkgconfig pkg-config --modversion asyncverbs)"
expect cpack "$(read_version "$build/CPackSourceConfig.cmake" 's/^set\(CPACK_PACKAGE_FILE_NAME "asyncverbs-(.*)"\)/\1/p')"
