#!/usr/bin/env bash
# SPDX-License-Identifier: MIT
#
# Compares three event-driven ping-pongs on soft-RoCE: rc_pingpong of the examples, raw_pingpong, which is the same
# on plain verbs, and ibv_rc_pingpong -e. All runs share one guest whose clock counts instructions: the figures
# repeat, however busy the machine is. Fails when rc_pingpong costs more than it may.

set -euo pipefail

# What rc_pingpong may cost: its median over the sizes, in runs of the judged length, relative to the others' medians.
limit_raw=1.02
limit_ibv=0.97
judged_length=5000

sizes=(8 64 256)
lengths=(1000 5000)

home=$(dirname -- "$(readlink -f -- "${BASH_SOURCE[0]}")")

print_help() {
    cat <<'HELP'
Usage: pingpong.sh [BUILD]

BUILD is a build tree with rc_pingpong and raw_pingpong (build/release). Takes about a minute.
HELP
}

fail() {
    printf 'error: %s\n' "$*" >&2
    exit 1
}

is_listening() {
    # 18515, the default port of all three, in state LISTEN.
    grep -Eqs ':4853 [0-9A-F]+:0000 0A' /proc/net/tcp /proc/net/tcp6
}

# Runs a server and a client of one program and prints what an iteration of the client took, in microseconds.
measure() {
    local command=("$@" -g "$RDMA_GID_INDEX" -d "$RDMA_DEVICE" -i "$RDMA_PORT") server output
    "${command[@]}" >/dev/null &
    server=$!
    until is_listening; do
        kill -0 "$server" 2>/dev/null || fail "the server ended before it listened: ${command[*]}"
        sleep 0.01
    done
    output=$("${command[@]}" localhost) || fail "the client failed: ${command[*]}"
    wait "$server" || fail "the server failed: ${command[*]}"
    sed -n 's|.* = \([0-9.]*\) usec/iter.*|\1|p' <<<"$output"
}

# In the guest: one line per run: program, size, length, microseconds.
measure_all() {
    local build=$1 size length
    for length in "${lengths[@]}"; do
        for size in "${sizes[@]}"; do
            local options=(-s "$size" -n "$length")
            echo raw_pingpong "$size" "$length" "$(measure "$build/tests/benchmarks/raw_pingpong" "${options[@]}")"
            echo rc_pingpong "$size" "$length" "$(measure "$build/examples/rc_pingpong" "${options[@]}")"
            echo ibv_rc_pingpong "$size" "$length" "$(measure ibv_rc_pingpong -e "${options[@]}")"
        done
    done
}

# Prints the table; its exit status says whether the limits are kept.
report() {
    awk -v limit_raw="$limit_raw" -v limit_ibv="$limit_ibv" -v judged="$judged_length" '
        function median(program, iters,    values, count, i, j, swap) {
            count = split(all[program, iters], values)
            for (i = 1; i <= count; ++i)
                for (j = i + 1; j <= count; ++j)
                    if (values[j] + 0 < values[i] + 0) { swap = values[i]; values[i] = values[j]; values[j] = swap }
            return count % 2 ? values[(count + 1) / 2] : (values[count / 2] + values[count / 2 + 1]) / 2
        }
        function row(first, second, a, b, c) {
            printf "%6s %6s %14.2f %14.2f %16.2f %10.3f %10.3f\n", first, second, a, b, c, b / a, b / c
        }
        NF == 4 {
            run = $2 " " $3
            if (!(run in seen)) { seen[run]; runs[++run_count] = run }
            us[$1, run] = $4
            all[$1, $3] = all[$1, $3] " " $4
        }
        END {
            if (run_count == 0) { print "error: the measurement gave no figures" >"/dev/stderr"; exit 1 }
            print "Microseconds per iteration, both ends on one CPU:"
            printf "%6s %6s %14s %14s %16s %10s %10s\n", "bytes", "iters", "raw verbs", "rc_pingpong",
                   "ibv_rc_pingpong", "rc/raw", "rc/ibv"
            for (i = 1; i <= run_count; ++i) {
                split(runs[i], parts)
                row(parts[1], parts[2], us["raw_pingpong", runs[i]], us["rc_pingpong", runs[i]],
                    us["ibv_rc_pingpong", runs[i]])
            }
            raw = median("raw_pingpong", judged)
            rc = median("rc_pingpong", judged)
            ibv = median("ibv_rc_pingpong", judged)
            row("median", judged, raw, rc, ibv)
            good = rc / raw <= limit_raw && rc / ibv < limit_ibv
            printf "rc_pingpong costs %.3f of raw verbs (at most %s) and %.3f of ibv_rc_pingpong -e (below %s): %s\n",
                   rc / raw, limit_raw, rc / ibv, limit_ibv, good ? "good" : "TOO MUCH"
            exit !good
        }'
}

main() {
    case ${1:-} in
        --help | -h) print_help; exit 0 ;;
        --measure) measure_all "$2"; exit 0 ;;
        -*) fail "unknown option $1; see --help" ;;
    esac
    local build program
    build=$(readlink -f -- "${1:-$home/../../build/release}") || fail "there is no directory ${1:-build/release}"
    for program in examples/rc_pingpong tests/benchmarks/raw_pingpong; do
        [[ -x $build/$program ]] || fail "$build has no $program; build it first: cmake --build $build"
    done
    local figures
    figures=$("$home/../../cmake/soft-roce/run" --deterministic --timeout 600 -- "$home/pingpong.sh" --measure "$build") ||
        fail "the measurement failed"
    report <<<"$figures"
}

main "$@"
