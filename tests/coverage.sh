#!/usr/bin/env bash
# SPDX-License-Identifier: MIT
#
# Measures the share of the lines of include/ that the unit tests run, and prints the lines that they
# do not run. Fails if the share is below the minimum.
#
# Usage: tests/coverage.sh [MINIMUM]      in percent, by default 95
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

minimum=${1:-95}
build=build/coverage

cmake/install-dependencies.sh cmake make g++ git pkg-config libibverbs-dev librdmacm-dev catch2 gcovr

cmake --preset coverage > /dev/null
cmake --build --preset coverage --target unit_tests --parallel "$(nproc)"
find "$build" -name '*.gcda' -delete # files of an earlier run
"$build/tests/unit_tests" > "$build/unit_tests.log" || { cat "$build/unit_tests.log"; exit 1; }

gcovr --root . --filter include/ --object-directory "$build" --json "$build/coverage.json" "$build"
python3 - "$build/coverage.json" "$minimum" << 'EOF'
import json, sys

run, missed = 0, []
for file in json.load(open(sys.argv[1]))["files"]:
    source = open(file["file"]).read().splitlines()
    counts = {}
    for line in file["lines"]:
        if not line["gcovr/noncode"]:
            counts[line["line_number"]] = counts.get(line["line_number"], 0) + line["count"]
    run += sum(count > 0 for count in counts.values())
    missed += [(file["file"], n, source[n - 1].strip()) for n, count in counts.items() if count == 0]

for name, number, text in sorted(missed):
    print(f"not covered: {name}:{number}: {text}")
covered = 100 * run / (run + len(missed))
print(f"line coverage of include/: {run} of {run + len(missed)} lines, {covered:.1f} %")
if covered < float(sys.argv[2]):
    sys.exit(f"that is less than {sys.argv[2]} %")
EOF
