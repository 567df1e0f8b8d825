#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Checks what programs that use the library cost the compiler, compared with a program that does the same
with Asio's coroutines and sockets.

The cost is the memory that GCC allocates, as -ftime-report counts it, which is the same in each run.
Times are printed, but not checked: on a busy machine their ratios differ by a fifth. Without Asio, the
test is skipped (77).

Usage: tests/consume/compile_time/compile_time.py COMPILER [OPTION...]
"""

import re
import subprocess
import sys
from pathlib import Path

HOME = Path(__file__).resolve().parent
INCLUDE = HOME.parent.parent.parent / "include"
TWIN = "asio_twin"
# Measured with GCC 12 and 14: 0.67 and 0.70; 0.97 and 0.93.
PROGRAMS = {"await_completions": 0.75, "await_operations": 1.00}
SKIPPED = 77
TOTAL = re.compile(r"^ TOTAL +: +(?P<seconds>[\d.]+) .* (?P<memory>\d+)M$", re.MULTILINE)


def compile_program(command, program):
    """Megabytes that the compiler allocates, and seconds of CPU time."""
    report = subprocess.run([*command, "-ftime-report", "-c", HOME / f"{program}.cpp", "-o", "/dev/null"],
                            check=True, text=True, stderr=subprocess.PIPE).stderr
    total = TOTAL.search(report)
    if total is None:
        sys.exit(f"compile_time: no total in the report of {command[0]}, which must be GCC:\n{report}")
    return int(total["memory"]), float(total["seconds"])


def has(command, header):
    return subprocess.run([*command, "-x", "c++", "-E", "-", "-o", "/dev/null"], text=True,
                          input=f"#include <{header}>\n", stderr=subprocess.DEVNULL).returncode == 0


def main():
    command = [*sys.argv[1:], "-std=c++20", "-I", INCLUDE]
    if not has(command, "asio.hpp"):
        print("compile_time: skipped, there is no asio.hpp to compare with (libasio-dev)")
        return SKIPPED
    twin, seconds = compile_program(command, TWIN)
    print(f"{TWIN}: {twin} MB, {seconds:.2f} s")
    failed = False
    for program, most in PROGRAMS.items():
        memory, seconds = compile_program(command, program)
        failed |= memory > most * twin
        print(f"{program}: {memory} MB, {memory / twin:.2f} of it; at most {most:.2f} is allowed; {seconds:.2f} s")
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
