#!/usr/bin/env bash
# SPDX-License-Identifier: MIT
#
# Checks that the map in a README and the tests are about the same things: every tag in the map has
# a test, and every invariant and every case from the field that a test is tagged with is in the map.
#
# Usage: tests/check_map.sh README UNIT_TESTS
set -euo pipefail

readme=$1
unit_tests=$2

# Some versions of Catch2 end a listing with the number of tests as their exit status.
known=$({ "$unit_tests" --list-tags || true; } | grep -oE '\[[^]]+\]' | sort -u)
# shellcheck disable=SC2016 # The backquotes are those of the README.
mapped=$(grep -oE '`\[[^]]+\]`' "$readme" | tr -d '`' | sort -u)
mappable=$(grep -xE '\[(I|field-)[0-9]+\]' <<< "$known")

status=0
complain() {
    printf '%s\n' "$1:" "$2"
    status=1
}
missing=$(comm -13 <(printf '%s\n' "$known") <(printf '%s\n' "$mapped"))
[[ -z $missing ]] || complain "in $readme, but no test has the tag" "$missing"
unmapped=$(comm -23 <(printf '%s\n' "$mappable") <(printf '%s\n' "$mapped"))
[[ -z $unmapped ]] || complain "tests have the tag, but it is not in $readme" "$unmapped"
((status != 0)) || printf '%s tags of %s have tests\n' "$(wc -l <<< "$mapped")" "$readme"
exit "$status"
