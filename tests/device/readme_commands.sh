#!/usr/bin/env bash
# SPDX-License-Identifier: MIT
#
# Runs the commands that the README shows for the soft-RoCE runner, with a program of ours as "yours".
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
    cmake/soft-roce/run --deterministic -- ./your_benchmark   # reproducible time: one instruction is one nanosecond
    cmake/soft-roce/run --guests 2 -- ./your_test             # in two guests on one link, which tc can make lossy
    # [/readme:soft_roce]
}

commands | tee output
grep -qw 'hca_id:' output
grep -q '^your_benchmark ran' output
(($(grep -c '^guest [01]: your_test ran' output) == 2))
