#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Measures what the library costs beside loops on plain verbs that are written by hand.

All programs run in one guest whose clock counts instructions, both ends of a connection on one CPU, so
the figures repeat to about 0.5 %, however busy the machine is. They are medians, in microseconds. The
limits are tripwires: above one the script fails.

Usage: tests/benchmarks/cost.py pingpong|operations|streams [BUILD] [--readme]

pingpong     rc_pingpong of the examples, beside raw_verbs and ibv_rc_pingpong -e; about a minute
operations   operations of AsyncQp, beside raw_verbs; about two minutes
streams      Stream, both ends in processes that copy, beside RDMA writes and the ping-pong of raw_verbs;
             about a minute
BUILD        a build tree with these programs (build/release)
--readme     with pingpong: write the figures to the table in README.md
"""

import os
import re
import subprocess
import sys
import time
from collections import defaultdict
from pathlib import Path
from statistics import median

HOME = Path(__file__).resolve().parent
REPOSITORY = HOME.parent.parent

MOST_PINGPONG = 1.03  # rc_pingpong relative to raw verbs
MOST_OPERATIONS = 1.05  # a ping-pong of AsyncQp relative to raw verbs
MOST_IN_FLIGHT = 1.07  # many operations in flight on many queue pairs, relative to raw verbs
MOST_ONE_QUEUE_PAIR = 0.92  # the same on one, where AsyncQp posts with one doorbell what comes together
# Stream relative to raw verbs. The guest's clock charges a long memcpy a nanosecond for each byte.
MOST_STREAM = {"write-64": 0.12, "write-4096": 0.95, "write-65536": 1.22, "write-1048576": 1.2, "pingpong-64": 1.1}
MOST_IBV = 1.0  # either ping-pong relative to ibv_rc_pingpong -e

RAW, RAW_EDGE = "raw verbs", "edge-triggered"


def run(pattern, *command):
    """The number that the output of the command has in the place of the group of the pattern."""
    output = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout
    return float(re.search(pattern, output)[1])


def is_listening(port):
    wanted = re.compile(rf":{port:04X} [0-9A-F]+:0000 0A")
    return any(wanted.search(Path(table).read_text()) for table in ("/proc/net/tcp", "/proc/net/tcp6"))


def two_processes(*command):
    """A server and a client: what an iteration of the client took."""
    device = os.environ
    command = [*command, "-d", device["RDMA_DEVICE"], "-i", device["RDMA_PORT"], "-g", device["RDMA_GID_INDEX"]]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as server:
        while not is_listening(18515):
            if server.poll() is not None:
                sys.exit(f"the server ended: {command}")
            time.sleep(0.01)
        result = run(r"= ([0-9.]+) usec/iter", *command, "localhost")
    if server.returncode != 0:
        sys.exit(f"the server failed: {command}")
    return result


def one_program(program, *options):
    return run(r"([0-9.]+) usec each", program, *options)


def measure_pingpong(build):
    """Yields what was measured: size, program, microseconds."""
    for _ in range(3):
        for size in 8, 64, 256:
            options = "-s", str(size), "-n", "5000"
            raw = build / "tests/benchmarks/raw_verbs"
            yield size, RAW, one_program(raw, "pingpong", *options)
            yield size, RAW_EDGE, one_program(raw, "pingpong", "-e", *options)
            yield size, "rc_pingpong", two_processes(build / "examples/rc_pingpong", *options)
            yield size, "ibv_rc_pingpong", two_processes("ibv_rc_pingpong", "-e", *options)


def measure_operations(build):
    """Yields what was measured: mode and queue pairs, program, microseconds."""
    raw, library = build / "tests/benchmarks/raw_verbs", build / "tests/benchmarks/operations"
    options = "-s", "64", "-n", "5000"
    for _ in range(7):
        yield "pingpong-1", RAW, one_program(raw, "pingpong", *options)
        yield "pingpong-1", RAW_EDGE, one_program(raw, "pingpong", "-e", *options)
        yield "pingpong-1", "AsyncQp", one_program(library, "pingpong", *options)
        yield "pingpong-1", "ibv_rc_pingpong", two_processes("ibv_rc_pingpong", "-e", *options)
    for mode in "send", "write":  # the loops hardly ever sleep, so once is enough
        for count in 1, 10, 100, 1000:
            options = mode, "-s", "64", "-n", "20000", "-w", "32", "-q", str(count)
            yield f"{mode}-{count}", RAW, one_program(raw, *options)
            yield f"{mode}-{count}", RAW_EDGE, one_program(raw, "-e", *options)
            yield f"{mode}-{count}", "AsyncQp", one_program(library, *options)


def measure_streams(build):
    """Yields what was measured: mode and size, program, microseconds."""
    raw, library = build / "tests/benchmarks/raw_verbs", build / "tests/benchmarks/streams"
    for size, count in (64, 20000), (4096, 4000), (65536, 300), (1048576, 20):
        options = "write", "-s", str(size), "-n", str(count), "-w", "4"
        yield f"write-{size}", RAW, one_program(raw, *options)
        yield f"write-{size}", "Stream", one_program(library, *options)
    for _ in range(3):
        options = "pingpong", "-s", "64", "-n", "4000"
        yield "pingpong-64", RAW, one_program(raw, *options)
        yield "pingpong-64", "Stream", one_program(library, *options)


def print_table(medians, library):
    programs = list(dict.fromkeys(program for _, program in medians))
    print(f"{'':14}" + "".join(f"{program:>17}" for program in programs) +
          "".join(f"{'/ ' + program:>18}" for program in programs if program != library))
    for row in dict.fromkeys(row for row, _ in medians):
        found = {program: medians[row, program] for program in programs if (row, program) in medians}
        line = f"{row:14}" + "".join(f"{found.get(program, float('nan')):17.2f}" for program in programs)
        for program in programs:
            if program != library:
                line += f"{found[library] / found.get(program, float('nan')):18.3f}"
        print(line.replace("nan", "  -"))


def write_to_readme(medians):
    readme = REPOSITORY / "README.md"
    rows = "".join(
        f"| {row} | " + " | ".join(f"{medians[row, program]:.1f}" for program in
                                   (RAW, "rc_pingpong", "ibv_rc_pingpong")) + " |\n"
        for row in dict.fromkeys(row for row, _ in medians) if row != "all")
    table = re.compile(r"(<!-- `tests/benchmarks/cost.py pingpong --readme`.*?-->\n.*\n\| ---.*\n)(?:\|.*\n)+")
    text, count = table.subn(lambda found: found[1] + rows, readme.read_text())
    if count != 1:
        sys.exit(f"{readme} has no table that begins with a comment that names this script")
    readme.write_text(text)


def main():
    options = [word for word in sys.argv[1:] if word.startswith("--")]
    words = [word for word in sys.argv[1:] if not word.startswith("--")]
    if not set(options) <= {"--readme", "--in-guest"} or not 1 <= len(words) <= 2 or words[0] not in (
            "pingpong", "operations", "streams"):
        sys.exit(__doc__)
    what = words[0]
    build = Path(words[1] if len(words) > 1 else REPOSITORY / "build/release").resolve()
    if "--in-guest" in options:
        measure = {"pingpong": measure_pingpong, "operations": measure_operations, "streams": measure_streams}
        for row in measure[what](build):
            print(*row, sep="\t", flush=True)
        return 0

    guest = REPOSITORY / "cmake/soft-roce/run", "--deterministic", "--timeout", "900", "--"
    output = subprocess.run([*guest, sys.executable, __file__, what, build, "--in-guest"],
                            stdout=subprocess.PIPE, text=True, check=True).stdout
    runs = defaultdict(list)
    for line in output.splitlines():
        row, program, microseconds = line.split("\t")
        runs[row, program].append(float(microseconds))
    if what == "pingpong":
        for (_, program), values in list(runs.items()):
            runs["all", program] += values
    medians = {key: median(values) for key, values in runs.items()}
    library = {"pingpong": "rc_pingpong", "operations": "AsyncQp", "streams": "Stream"}[what]
    print_table(medians, library)

    if "--readme" in options:
        write_to_readme(medians)

    failed = False

    def judge(row, other_row, other, most):
        nonlocal failed
        ratio = medians[row, library] / medians[other_row, other]
        good = ratio <= most
        failed = failed or not good
        print(f"{library} {row}: {ratio:.3f} of {other} {other_row}, at most {most}: {'good' if good else 'TOO MUCH'}")

    if what == "pingpong":
        judge("all", "all", RAW, MOST_PINGPONG)
        judge("all", "all", "ibv_rc_pingpong", MOST_IBV)
    elif what == "streams":
        for row, most in MOST_STREAM.items():
            judge(row, row, RAW, most)
    else:
        judge("pingpong-1", "pingpong-1", RAW, MOST_OPERATIONS)
        judge("pingpong-1", "pingpong-1", "ibv_rc_pingpong", MOST_IBV)
        for mode in "send", "write":
            judge(f"{mode}-1", f"{mode}-1", RAW, MOST_ONE_QUEUE_PAIR)
            for count in 10, 100, 1000:
                judge(f"{mode}-{count}", f"{mode}-{count}", RAW, MOST_IN_FLIGHT)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
