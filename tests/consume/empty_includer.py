#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Checks that a file that includes an umbrella header and uses nothing of it has little code. GCC emits
each coroutine that a header defines and that is not a template, even if it is unused.

Usage: tests/consume/empty_includer.py MOST COMPILER      MOST is in bytes of all sections .text*
"""

import subprocess
import sys
import tempfile
from pathlib import Path

INCLUDE = Path(__file__).resolve().parent.parent.parent / "include"
HEADERS = "asyncverbs/asyncverbs.hpp", "asyncverbs/rdma.hpp", "asyncverbs/cm.hpp"


def text_size(compiler, header):
    with tempfile.TemporaryDirectory() as directory:
        built = Path(directory) / "empty.o"
        subprocess.run([compiler, "-std=c++20", "-O0", "-I", INCLUDE, "-x", "c++", "-c", "-", "-o", built],
                       input=f"#include <{header}>\n", text=True, check=True)
        sections = subprocess.run(["size", "-A", built], stdout=subprocess.PIPE, text=True, check=True).stdout
    return sum(int(line.split()[1]) for line in sections.splitlines() if line.startswith(".text"))


most, compiler = int(sys.argv[1]), sys.argv[2]
sizes = {header: text_size(compiler, header) for header in HEADERS}
for header, size in sizes.items():
    print(f"<{header}>: {size} bytes of code; at most {most} are allowed")
sys.exit(max(sizes.values()) > most)
