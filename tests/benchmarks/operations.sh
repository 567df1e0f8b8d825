#!/usr/bin/env bash
# SPDX-License-Identifier: MIT
#
# Compares operations of AsyncQp with loops that do the same on plain verbs, and its ping-pong with ibv_rc_pingpong -e
# too. All runs share one guest whose clock counts instructions: the figures repeat, however busy the machine is. Fails
# when AsyncQp costs more than it may.

set -euo pipefail

# What AsyncQp may cost relative to the raw loop, and with any number of queue pairs relative to one.
limit_pingpong=1.03
limit_in_flight=1.05
limit_queue_pairs=1.05

# What sleeps differs by up to 0.5 % from run to run, what never does hardly at all.
pingpong=(-s 64 -n 5000)
repetitions=7
in_flight=(-s 64 -n 20000 -w 32)
queue_pairs=(1 10 100 1000)

home=$(dirname -- "$(readlink -f -- "${BASH_SOURCE[0]}")")
# shellcheck source=tests/benchmarks/measure.bash
source "$home/measure.bash"

print_help() {
    cat <<'HELP'
Usage: operations.sh [BUILD]

BUILD is a build tree with operations and raw_operations (build/release). Takes about a minute and a half.
HELP
}

# Prints what an operation took, in microseconds.
measure() {
    local output
    output=$("$@") || fail "it failed: $*"
    sed -n 's|.* \([0-9.]*\) usec each.*|\1|p' <<<"$output"
}

# In the guest: one line per run: program, mode, queue pairs, microseconds.
measure_all() {
    local bin=$1/tests/benchmarks program mode count i
    for ((i = 0; i < repetitions; ++i)); do
        for program in raw_operations operations; do
            echo "$program" pingpong 1 "$(measure "$bin/$program" pingpong "${pingpong[@]}")"
        done
        echo ibv_rc_pingpong pingpong 1 "$(measure_pingpong ibv_rc_pingpong -e "${pingpong[@]}")"
    done
    for mode in send write; do
        for count in "${queue_pairs[@]}"; do
            for program in raw_operations operations; do
                echo "$program" "$mode" "$count" "$(measure "$bin/$program" "$mode" "${in_flight[@]}" -q "$count")"
            done
        done
    done
}

# Prints the table; its exit status says whether the limits are kept.
report() {
    awk -v limit_pingpong="$limit_pingpong" -v limit_in_flight="$limit_in_flight" \
        -v limit_queue_pairs="$limit_queue_pairs" "$awk_median"'
        function judge(what, ratio, limit) {
            if (ratio <= limit) return
            printf "%s: %.3f, but at most %s\n", what, ratio, limit
            bad = 1
        }
        NF == 4 {
            name = $2 " " $3
            if (!(name in seen)) { seen[name]; names[++name_count] = name }
            runs[$1, name] = runs[$1, name] " " $4
        }
        END {
            if (name_count != 9) { print "error: figures are missing" >"/dev/stderr"; exit 1 }
            print "Microseconds per operation, both ends on one CPU; medians:"
            printf "%-9s %6s %10s %10s %9s %11s\n", "", "pairs", "raw verbs", "AsyncQp", "ratio", "to 1 pair"
            for (i = 1; i <= name_count; ++i) {
                split(names[i], part)
                raw = median(runs["raw_operations", names[i]])
                own = median(runs["operations", names[i]])
                if (part[2] == 1) one = own
                printf "%-9s %6d %10.2f %10.2f %9.3f %11.3f\n", part[1], part[2], raw, own, own / raw, own / one
                ratio[names[i]] = own / raw
                to_one[names[i]] = own / one
                cost[names[i]] = own
            }
            ibv = median(runs["ibv_rc_pingpong", "pingpong 1"])
            printf "ibv_rc_pingpong -e: %.2f\n", ibv
            judge("ping-pong relative to the raw loop", ratio["pingpong 1"], limit_pingpong)
            judge("ping-pong relative to ibv_rc_pingpong -e", cost["pingpong 1"] / ibv, 1)
            for (i = 2; i <= name_count; ++i) {
                split(names[i], part)
                if (part[2] == 1) judge(part[1] " in flight relative to the raw loop", ratio[names[i]], limit_in_flight)
                judge(part[1] " over " part[2] " queue pairs relative to one", to_one[names[i]], limit_queue_pairs)
            }
            print bad ? "TOO MUCH" : "good"
            exit bad
        }'
}

main() {
    case ${1:-} in
        --help | -h) print_help; exit 0 ;;
        --measure) measure_all "$2"; exit 0 ;;
        -*) fail "unknown option $1; see --help" ;;
    esac
    local build figures
    build=$(build_with "${1:-$home/../../build/release}" tests/benchmarks/{operations,raw_operations})
    figures=$(in_guest "$home/operations.sh" --measure "$build")
    report <<<"$figures"
}

main "$@"
