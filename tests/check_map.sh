#!/usr/bin/env bash
# SPDX-License-Identifier: MIT
#
# Checks that the map in a README matches the tests. Every tag in the map must have a test. Every tag
# of a test that names an invariant or a case from the field must be in the map.
#
# Usage: tests/check_map.sh README UNIT_TESTS
set -euo pipefail

readme=$1
unit_tests=$2

# Some versions of Catch2 use the number of listed tests as the exit status.
known=$({ "$unit_tests" --list-tags || true; } | grep -oE '\[[^]]+\]' | sort -u)
# shellcheck disable=SC2016 # The README contains the backquotes.
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
