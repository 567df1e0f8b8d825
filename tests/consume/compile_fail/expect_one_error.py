#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Checks that wrong code, or a compiler without a required feature, gets one error that contains MESSAGE.

COMMAND compiles FILE, or each public header in turn if FILE is a directory of headers. The fatal error
that follows an #error and ends the compilation is not counted.

Usage: tests/consume/compile_fail/expect_one_error.py MESSAGE FILE COMMAND...
"""

import re
import subprocess
import sys
from pathlib import Path

message, path, command = sys.argv[1], Path(sys.argv[2]), sys.argv[3:]
files = [path] if path.is_file() else sorted(
    header for header in path.rglob("*.hpp")
    if "detail" not in header.parts and header.name != "version.hpp")
failed = 0
for file in files:
    run = subprocess.run([*command, "-fsyntax-only", "-x", "c++", file], stderr=subprocess.PIPE, text=True)
    errors = re.findall(r"(?<!fatal )error: .*", run.stderr)
    if run.returncode == 0 or len(errors) != 1 or message not in errors[0]:
        failed += 1
        print(f'{file}: expected one error that says "{message}", got {len(errors)}:\n{run.stderr[:1000]}')
print(f'{len(files) - failed} of {len(files)} files get one error that says "{message}"')
sys.exit(failed > 0 or not files)
