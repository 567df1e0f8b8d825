#!/usr/bin/env bash
# Builds a program for each mutation of the library, and prints what finds the mutation: the property
# of the protocol that it violates, or the test case that fails.
#
# Usage: tests/mutations/run.sh [--every N] [BUILD [FOLDER...]]
#
# BUILD is a CMake build tree, by default build/debug. FOLDER is a folder of include/asyncverbs, by
# default all. --every N makes all of them, but runs only the first of every N.
# Exit status: 0 if every mutation is found.
set -euo pipefail

every=1
[[ ${1-} != --every ]] || { every=$2; shift 2; }
build=${1:-build/debug}
(($# == 0)) || shift
programs=$build/tests/mutations

# The lines of the list: a folder, the name of a mutation, and the arguments of its program.
mapfile -t mutations < <(awk -v every="$every" -v folders=" $* " '
    folders == "  " || index(folders, " " $1 " ") { if (count++ % every == 0) print }' "$programs/list")
((${#mutations[@]} > 0)) || { printf 'no mutations in: %s\n' "$*" >&2; exit 1; }

targets=(mutated_headers)
for mutation in "${mutations[@]}"; do
    read -r folder name _ <<< "$mutation"
    targets+=("mutation-$folder-$name")
done
cmake --build "$build" --target "${targets[@]}" --parallel "$(nproc)" > "$programs/build.log" || {
    cat "$programs/build.log"
    exit 1
}

# run PROGRAM ARGUMENT...: runs it into $output and $status, for two minutes at most.
run() {
    status=0
    output=$(timeout 120 "$@" 2>&1) || status=$?
}

# The explorer runs the shortest schedules first. It names the violated property.
explore() {
    local steps
    for steps in 1 2 3; do
        run "$@" --steps "$steps"
        ((status == 0)) || break
    done
    cause=$(sed -n 's/^violated: //p' <<< "$output")
    ((status == 1)) || cause=
}

# Catch2 prints the name of the failed test case between lines of dashes. A mutation may also be
# found by a sanitizer, end the program by a signal, or hang it.
test_cases() {
    run "$@"
    cause=$(awk '/^---------*$/ { named = !named; next } named { print; exit }
        /^WARNING: .*Sanitizer: / { sub(/^WARNING: /, ""); sub(/ \(.*/, ""); print; exit }' <<< "$output")
    case $status in
        0) cause= ;;
        124) cause="hangs: ${cause:-the test program}" ;;
        *) cause=${cause:-exit status $status} ;;
    esac
}

found=0 survived=0
printf '%-9s %-44s %s\n' folder mutation 'found by'
for mutation in "${mutations[@]}"; do
    read -r folder name arguments <<< "$mutation"
    read -ra arguments <<< "$arguments"
    program=$programs/mutation-$folder-$name
    if [[ ${arguments[0]-} != --abort ]]; then
        explore "$program" "${arguments[@]}"
    else
        test_cases "$program" "${arguments[@]}"
    fi
    if [[ $cause ]]; then
        found=$((found + 1))
    else
        cause="SURVIVED (exit status $status)"
        survived=$((survived + 1))
    fi
    printf '%-9s %-44s %s\n' "$folder" "$name" "$cause"
done

printf '\n%d mutations found, %d survived\n' "$found" "$survived"
((survived == 0))
