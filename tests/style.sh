#!/usr/bin/env bash
# SPDX-License-Identifier: MIT
#
# Checks how the code is written: its format, and that clang-tidy finds nothing in the headers, the examples and the
# tests' support, and shellcheck nothing in the scripts.
#
# Usage: tests/style.sh
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

cmake/install-dependencies.sh clang-format-19 clang-tidy-19 shellcheck

mapfile -t sources < <(find include examples tests -name '*.[ch]pp' | sort)
clang-format-19 --dry-run -Werror "${sources[@]}"
printf '%s files are formatted\n' "${#sources[@]}"

mapfile -t scripts < <(grep -rlE '^#!.*sh$|^# shellcheck shell=' cmake examples tests .ci 2>/dev/null | sort)
shellcheck --external-sources "${scripts[@]}"
printf 'shellcheck finds nothing in %s scripts\n' "${#scripts[@]}"

# All headers at once, and each adapter, which may exclude another.
headers=build/style
mkdir -p "$headers"
find include -name '*.hpp' -not -path '*/adapters/*' -printf '#include <%P>\n' | sort >"$headers/headers.cpp"
for adapter in include/asyncverbs/adapters/*.hpp; do
    printf '#include <%s>\n' "${adapter#include/}" >"$headers/$(basename "$adapter" .hpp).cpp"
done
mapfile -t units < <(find "$headers" examples tests/support -name '*.cpp' | sort)
printf '%s\n' "${units[@]}" | xargs --max-procs="$(nproc)" --replace clang-tidy-19 --quiet --config-file=.clang-tidy \
    {} -- -std=c++20 -I include -I tests 2> >(grep -v 'warnings generated\|^Suppressed' >&2)
printf 'clang-tidy finds nothing in %s translation units\n' "${#units[@]}"
