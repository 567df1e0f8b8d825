#!/usr/bin/env bash
# SPDX-License-Identifier: MIT
#
# Creates the source package, unpacks it in DIRECTORY, and compares it with the files that git tracks.
#
# Usage: tests/consume/source_package.sh BUILD VERSION DIRECTORY
set -euo pipefail

source=$(dirname -- "$(readlink -f -- "${BASH_SOURCE[0]}")")/../..
build=$1 version=$2 directory=$3
name=asyncverbs-$version

rm -rf -- "$directory"
mkdir -p -- "$directory"
cpack --config "$build/CPackSourceConfig.cmake" -B "$directory" >/dev/null
tar -xzf "$directory/$name.tar.gz" -C "$directory"
tar -tJf "$directory/$name.tar.xz" >/dev/null

cd -- "$directory/$name"
for program in tests/run.sh examples/run.sh cmake/soft-roce/run; do
    [[ -x $program ]] || { printf '%s is not in the package, or not executable\n' "$program"; exit 1; }
done
if [[ -e $source/.git ]]; then
    diff <(git -C "$source" ls-files | grep -v '^\.ci/' | sort) <(find . -type f -printf '%P\n' | sort)
else
    printf 'not compared with the files in git: this is no git checkout\n'
fi
# The package is a complete project: it configures with its tests, and creates a package of the same name.
cmake -S . -B ../build >/dev/null
grep -qF "\"$name\"" ../build/CPackSourceConfig.cmake
