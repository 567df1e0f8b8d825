#!/usr/bin/env bash
# SPDX-License-Identifier: MIT
#
# Checks the style of the code: its format, with clang-format; the headers and the examples, which users read, with
# clang-tidy; and the scripts, with shellcheck.
#
# Usage: tests/style.sh
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

cmake/install-dependencies.sh clang-format-19 clang-tidy-19 shellcheck pkg-config \
    libibverbs-dev librdmacm-dev libasio-dev liburing-dev libglib2.0-dev libuv1-dev libsystemd-dev libxxhash-dev \
    libcli11-dev

mapfile -t sources < <(find include simulation examples tests -name '*.[ch]pp' | sort)
clang-format-19 --dry-run -Werror "${sources[@]}"
printf '%s files are formatted\n' "${#sources[@]}"

mapfile -t scripts < <(grep -rlE '^#!.*sh$|^# shellcheck shell=' cmake examples tests .ci 2>/dev/null | sort)
shellcheck --external-sources "${scripts[@]}"
printf 'shellcheck finds nothing in %s scripts\n' "${#scripts[@]}"

# The system's headers take most of the time, so check many files in one unit. One unit contains all headers. For each
# directory, one unit contains the sources without a main().
units=build/style
rm -rf -- "$units"
mkdir -p -- "$units"
find include simulation/include -name '*.hpp' -printf '#include <%P>\n' | sort >"$units/headers.cpp"
find examples -name '*.cpp' -print0 | xargs -0 grep -L '^int main(' | sort |
    while read -r source; do
        printf '#include "%s" // NOLINT(bugprone-suspicious-include)\n' "$source" \
            >>"$units/$(basename "$(dirname "$source")")_sources.cpp"
    done
read -ra loops <<<"$(pkg-config --cflags-only-I glib-2.0 libuv libsystemd)"
printf 'clang-tidy skips 07_asio: it reports the coroutines inside Asio 1.22 as uninitialised\n'
mapfile -t units < <(find "$units" -name '*.cpp'; grep -rl --include='*.cpp' --exclude=07_asio.cpp '^int main(' examples)
printf '%s\n' "${units[@]}" | xargs --max-procs="$(nproc)" --replace clang-tidy-19 --quiet --config-file=.clang-tidy \
    {} -- -std=c++20 -I . -I include -I simulation/include "${loops[@]}" 2> >(grep -v 'warnings generated\|^Suppressed' >&2)
printf 'clang-tidy finds nothing in %s translation units\n' "${#units[@]}"
