# SPDX-License-Identifier: MIT
#
# What the benchmarks have in common. To be sourced.

fail() {
    printf 'error: %s\n' "$*" >&2
    exit 1
}

# Prints the build tree's path; fails where it has not got these programs.
build_with() {
    local build program
    build=$(readlink -f -- "$1") || fail "there is no directory $1"
    for program in "${@:2}"; do
        [[ -x $build/$program ]] || fail "$build has no $program; build it first: cmake --build $build"
    done
    printf '%s\n' "$build"
}

# Runs a command in a guest whose clock counts instructions: figures repeat, however busy the machine is.
in_guest() {
    "$(dirname -- "${BASH_SOURCE[0]}")/../../cmake/soft-roce/run" --deterministic --timeout 600 -- "$@" ||
        fail "the measurement failed"
}

is_listening() {
    # 18515, the default port of rc_pingpong, raw_pingpong and ibv_rc_pingpong, in state LISTEN.
    grep -Eqs ':4853 [0-9A-F]+:0000 0A' /proc/net/tcp /proc/net/tcp6
}

# Runs a server and a client of one of them and prints what an iteration of the client took, in microseconds.
measure_pingpong() {
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

# For awk: the median of the numbers in a text.
awk_median='
    function median(text,    values, count, i, j, swap) {
        count = split(text, values)
        for (i = 1; i <= count; ++i)
            for (j = i + 1; j <= count; ++j)
                if (values[j] + 0 < values[i] + 0) { swap = values[i]; values[i] = values[j]; values[j] = swap }
        return count % 2 ? values[(count + 1) / 2] : (values[count / 2] + values[count / 2 + 1]) / 2
    }'
