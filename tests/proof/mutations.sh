#!/usr/bin/env bash
# Builds an explorer for each mutation of the protocol, and prints the property that the mutation
# violates.
#
# Usage: mutations.sh BUILD     a CMake build tree
# Exit status: 0 if every mutation is found.
set -euo pipefail

build=$1
proof=$build/tests/proof

cmake --build "$build" --target mutations --parallel "$(nproc)" > "$proof/mutations/build.log" || {
    cat "$proof/mutations/build.log"
    exit 1
}

found=0 survived=0
printf '%-36s %9s  %s\n' mutation schedule 'violated property'
while read -r mutation setting; do
    status=0
    # The shortest schedules first.
    for steps in 1 2 3; do
        ((status == 0)) || break
        output=$(timeout 120 "$proof/$mutation" --steps $steps --filter "$setting" 2>&1) || status=$?
    done
    property=$(sed -n 's/^violated: //p' <<< "$output")
    if ((status == 1)) && [[ $property ]]; then
        schedule=$(sed -n 's/^Schedule \([0-9]*\) fails.*/\1/p' <<< "$output")
        found=$((found + 1))
    else
        schedule=-
        property="SURVIVED (exit status $status)"
        survived=$((survived + 1))
    fi
    printf '%-36s %9s  %s\n' "${mutation#mutation-}" "$schedule" "$property"
done < "$proof/mutations/list"

printf '\n%d mutations found, %d survived\n' "$found" "$survived"
((survived == 0))
