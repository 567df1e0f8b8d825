#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Checks that the library is cheap to include: how long a file that includes its umbrella takes
to compile, beside one that includes Asio, in the same run.

Times are those of the CPU, user and system, so other work of the machine matters little; each is the
least of several runs, in which the two take turns. Without Asio it says so and exits with 77.

Usage: tests/consume/compile_time.py COMPILER MOST
"""

import resource
import subprocess
import sys
import tempfile
from pathlib import Path

INCLUDE = Path(__file__).resolve().parent.parent.parent / "include"
ROUNDS = 5
SKIPPED = 77


def compile_time(compiler, source):
    """Seconds of CPU time that compiling the file `source` takes."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    command = [compiler, "-std=c++20", "-I", INCLUDE, "-c", source, "-o", "/dev/null"]
    subprocess.run(command, check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def has(compiler, header):
    """Whether there is such a header."""
    command = [compiler, "-x", "c++", "-E", "-", "-o", "/dev/null"]
    include = f"#include <{header}>\n"
    return subprocess.run(command, input=include, text=True, stderr=subprocess.DEVNULL).returncode == 0


def main():
    compiler, most = sys.argv[1], float(sys.argv[2])
    if not has(compiler, "asio.hpp"):
        print("compile_time: skipped, there is no asio.hpp to compare with (libasio-dev)")
        return SKIPPED
    times = {"asyncverbs/asyncverbs.hpp": [], "asio.hpp": []}
    with tempfile.TemporaryDirectory() as directory:
        source = Path(directory) / "include.cpp"
        for _ in range(ROUNDS):
            for header, seconds in times.items():
                source.write_text(f"#include <{header}>\n", encoding="utf-8")
                seconds.append(compile_time(compiler, source))
    ours, asio = (min(seconds) for seconds in times.values())
    for header, seconds in times.items():
        print(f"<{header}>: {min(seconds):.2f} s")
    print(f"{ours / asio:.2f} of Asio's time; at most {most:.2f} is allowed")
    return 0 if ours <= most * asio else 1


if __name__ == "__main__":
    sys.exit(main())
