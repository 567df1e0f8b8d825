#!/usr/bin/env bash
# SPDX-License-Identifier: MIT
#
# Compares three event-driven ping-pongs on soft-RoCE: rc_pingpong of the examples, raw_pingpong, which is the same
# on plain verbs, and ibv_rc_pingpong -e. All runs share one guest whose clock counts instructions: the figures
# repeat, however busy the machine is. Fails when rc_pingpong costs more than it may.

set -euo pipefail

# What rc_pingpong may cost: its median over all runs, relative to the others' medians.
limit_raw=1.02
limit_ibv=0.97

# A run differs by up to 0.5 % from the next one of the same program, which starts with other addresses and another
# phase of the timer: hence several of each size.
iterations=5000
sizes=(8 64 256)
repetitions=3

home=$(dirname -- "$(readlink -f -- "${BASH_SOURCE[0]}")")
# shellcheck source=tests/benchmarks/measure.bash
# shellcheck source=tests/benchmarks/measure.bash
source "$home/measure.bash"

print_help() {
    cat <<'HELP'
Usage: pingpong.sh [BUILD]

BUILD is a build tree with rc_pingpong and raw_pingpong (build/release). Takes about a minute.
HELP
}

# In the guest: one line per run: program, size, microseconds.
measure_all() {
    local build=$1 size i
    for ((i = 0; i < repetitions; ++i)); do
        for size in "${sizes[@]}"; do
            local options=(-s "$size" -n "$iterations")
            echo raw_pingpong "$size" "$(measure_pingpong "$build/tests/benchmarks/raw_pingpong" "${options[@]}")"
            echo rc_pingpong "$size" "$(measure_pingpong "$build/examples/rc_pingpong" "${options[@]}")"
            echo ibv_rc_pingpong "$size" "$(measure_pingpong ibv_rc_pingpong -e "${options[@]}")"
        done
    done
}

# Prints the table; its exit status says whether the limits are kept.
report() {
    awk -v limit_raw="$limit_raw" -v limit_ibv="$limit_ibv" "$awk_median"'
        function row(name, runs,    raw, rc, ibv) {
            raw = median(runs["raw_pingpong", name])
            rc = median(runs["rc_pingpong", name])
            ibv = median(runs["ibv_rc_pingpong", name])
            to_raw = rc / raw
            to_ibv = rc / ibv
            printf "%6s %14.2f %14.2f %16.2f %10.3f %10.3f\n", name, raw, rc, ibv, to_raw, to_ibv
        }
        NF == 3 {
            if (!($2 in seen)) { seen[$2]; sizes[++size_count] = $2 }
            runs[$1, $2] = runs[$1, $2] " " $3
            runs[$1, "all"] = runs[$1, "all"] " " $3
        }
        END {
            if (size_count == 0) { print "error: the measurement gave no figures" >"/dev/stderr"; exit 1 }
            print "Microseconds per iteration, both ends on one CPU; medians:"
            printf "%6s %14s %14s %16s %10s %10s\n", "bytes", "raw verbs", "rc_pingpong", "ibv_rc_pingpong", "rc/raw", "rc/ibv"
            for (i = 1; i <= size_count; ++i) row(sizes[i], runs)
            row("all", runs)
            good = to_raw <= limit_raw && to_ibv < limit_ibv
            printf "rc_pingpong costs %.3f of raw verbs (at most %s) and %.3f of ibv_rc_pingpong -e (below %s): %s\n",
                   to_raw, limit_raw, to_ibv, limit_ibv, good ? "good" : "TOO MUCH"
            exit !good
        }'
}

main() {
    case ${1:-} in
        --help | -h) print_help; exit 0 ;;
        --measure) measure_all "$2"; exit 0 ;;
        -*) fail "unknown option $1; see --help" ;;
    esac
    local build figures
    build=$(build_with "${1:-$home/../../build/release}" examples/rc_pingpong tests/benchmarks/raw_pingpong)
    figures=$(in_guest "$home/pingpong.sh" --measure "$build")
    report <<<"$figures"
}

main "$@"
