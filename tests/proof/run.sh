#!/usr/bin/env bash
# Builds the proof in a build tree and runs it. Prints how many schedules the explorer ran, and what
# finds each mutation of the library.
#
# Usage: tests/proof/run.sh [BUILD]     a CMake build tree, by default build/release
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

build=${1:-build/release}
[[ -d $build ]] || cmake --preset "${build#build/}" > /dev/null
cmake --build "$build" --target explorer
ctest --test-dir "$build" --tests-regex explorer --verbose
tests/mutations/run.sh "$build"
