#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Checks that each code block of a Markdown file is cut from a file that is compiled or run.

The blocks of cpp, cmake and sh are cut from regions that are marked in files of examples/ or tests/:

    // [readme:NAME]          # [readme:NAME]
    ...                       ...
    // [/readme:NAME]         # [/readme:NAME]

To show code, mark it in an example, or in a file that a test builds or runs, and paste what is between
the marks, without the indentation of the first. A block of sh may instead name nothing but scripts of
this repository, one a line. Blocks without a language are output, and not checked.

Usage: tests/check_readme.py FILE...
"""

import difflib
import os
import re
import sys
import textwrap
from pathlib import Path

HOME = Path(__file__).resolve().parent.parent
MARKED = {".cpp", ".hpp", ".cmake", ".txt", ".sh"}


def marked_regions():
    """The text of each region, and where it is."""
    regions = {}
    region = re.compile(
        r"^[ ]*(?://|\#)\ \[readme:(\w+)\]\n(.*?)^[ ]*(?://|\#)\ \[/readme:\1\]$",
        re.MULTILINE | re.DOTALL | re.VERBOSE)
    for directory in "examples", "tests":
        for path in sorted((HOME / directory).rglob("*")):
            if path.suffix not in MARKED or not path.is_file():
                continue
            text = path.read_text()
            found = region.findall(text)
            if len(found) != len(re.findall(r"^ *(?://|#) \[readme:", text, re.MULTILINE)):
                sys.exit(f"{path}: a mark [readme:NAME] has no [/readme:NAME]")
            for name, body in found:
                regions[textwrap.dedent(body)] = f"{path.relative_to(HOME)}, [readme:{name}]"
    return regions


def names_scripts(block):
    lines = [re.sub(r"\s*#.*", "", line) for line in block.splitlines()]
    return all(line.startswith("./") and os.access(HOME / line, os.X_OK) for line in lines)


def check(readme, regions):
    text = Path(readme).read_text()
    checked = failed = 0
    for fence in re.finditer(r"^```(\w+)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL):
        language, block = fence.groups()
        checked += 1
        if language in ("cpp", "cmake", "sh") and block in regions:
            continue
        if language == "sh" and names_scripts(block):
            continue
        failed += 1
        line = text.count("\n", 0, fence.start()) + 1
        print(f"{readme}:{line}: this block of {language} is not the same as any marked region")
        for nearest in difflib.get_close_matches(block, regions, n=1, cutoff=0.3):
            sys.stdout.writelines(difflib.unified_diff(
                nearest.splitlines(True), block.splitlines(True), regions[nearest], str(readme)))
    if failed or not checked:
        sys.exit(f"{readme}: {failed} of {checked} code blocks are cut from no file")
    print(f"{readme}: {checked} code blocks are the same as the files that they are cut from")


if len(sys.argv) < 2:
    sys.exit(__doc__)
marked = marked_regions()
for file in sys.argv[1:]:
    check(file, marked)
