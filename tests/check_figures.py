#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Checks the figures of tests/README.md: each **number** in bold there has to be one that the tests print.

UNIT_TESTS is the program, EXPLORER the output of the explorer if it has run.

Usage: tests/check_figures.py README UNIT_TESTS [EXPLORER]
"""

import re
import subprocess
import sys
from pathlib import Path

HOME = Path(__file__).resolve().parent
PRINTED = {  # what the unit tests print, and which of them do
    "pairs of operation and failing call": (r": (\d+) pairs of operation and failing call", "[failing_calls]"),
    "combinations of the lifetime tests": (r"lifetimes: (\d+) combinations", "[lifetimes]"),
    "schedules of operations": (r"^(\d+) schedules of three operations", "Operations: every interleaving"),
}


def figures(unit_tests, explorer):
    """What each figure is called, and its value."""
    for name, (pattern, tests) in PRINTED.items():
        output = subprocess.run([unit_tests, tests], stdout=subprocess.PIPE, text=True, check=True).stdout
        yield name, sum(map(int, re.findall(pattern, output, re.MULTILINE)))
    mutations = (HOME / "proof/mutations.cmake").read_text()
    yield "mutations", len(re.findall(r"^ *mutation\(", mutations, re.MULTILINE))
    if explorer.is_file():
        found = re.search(r"(\d+) schedules", explorer.read_text())
        yield "schedules of the explorer", int(found[1])


if len(sys.argv) not in (3, 4):
    sys.exit(__doc__)
readme, unit_tests = Path(sys.argv[1]), sys.argv[2]
explorer = Path(sys.argv[3] if len(sys.argv) > 3 else "")
known = dict(figures(unit_tests, explorer))
for name, value in known.items():
    print(f"{value:>10,} {name}")
failed = False
for number, line in enumerate(readme.read_text().splitlines(), 1):
    for stated in re.findall(r"\*\*([\d,]+)\*\*", line):
        if int(stated.replace(",", "")) not in known.values():
            failed = True
            print(f"{readme}:{number}: no test prints {stated}")
sys.exit(failed)
