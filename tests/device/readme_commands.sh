#!/usr/bin/env bash
# SPDX-License-Identifier: MIT
#
# Runs the soft-RoCE runner's commands that the README shows or mentions.
set -euo pipefail

home=$(dirname -- "$(readlink -f -- "${BASH_SOURCE[0]}")")
directory=$(mktemp -d)
trap 'rm -rf -- "$directory"' EXIT
ln -s "$home/../../cmake" "$directory/cmake"
cd -- "$directory"
for program in your_benchmark your_test; do
    printf '%s\n' '#!/bin/sh' "test -n \"\$RDMA_DEVICE\" && echo $program ran" >"$program"
    chmod +x "$program"
done

commands() {
    # [readme:soft_roce]
    cmake/soft-roce/run -- ibv_devinfo
    # [/readme:soft_roce]
    cmake/soft-roce/run --deterministic -- ./your_benchmark
    cmake/soft-roce/run --guests 2 -- ./your_test
}

commands | tee output
grep -qw 'hca_id:' output
grep -q '^your_benchmark ran' output
(($(grep -c '^guest [01]: your_test ran' output) == 2))
