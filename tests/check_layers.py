#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Checks that each header includes only headers of folders that its own folder may know.

Usage: tests/check_layers.py [INCLUDE]      the folder of the headers, by default include/asyncverbs
"""

import re
import sys
from pathlib import Path

# The folders, or parts of folders, that each folder may include besides itself. The headers directly
# below INCLUDE are not restricted, and every folder may include requirements.hpp.
MAY_INCLUDE = {
    "verbs": (),
    "coro": (),
    "executor": ("coro", "verbs"),
    "cq": ("coro", "verbs"),
    "rdma": ("cq", "coro", "verbs", "executor/with_timeout.hpp"),
    "cm": ("cq", "coro", "verbs", "executor/detail/timers.hpp"),
    "adapters": ("rdma", "cq", "coro", "verbs", "executor/detail"),
    "testing": ("cq", "coro", "verbs"),
}


def main(include):
    checked = failed = 0
    for header in sorted(include.glob("*/**/*.hpp")):
        folder = header.relative_to(include).parts[0]
        if folder not in MAY_INCLUDE:
            sys.exit(f"{header}: add the folder {folder} to {__file__}")
        allowed = (folder, *MAY_INCLUDE[folder])
        for number, line in enumerate(header.read_text().splitlines(), 1):
            found = re.match(r'\s*#\s*include\s*[<"](?:asyncverbs/)?([\w./]+)', line)
            if not found or not (include / found[1]).is_file() or found[1] == "requirements.hpp":
                continue
            checked += 1
            if not any(found[1] == path or found[1].startswith(path + "/") for path in allowed):
                failed += 1
                print(f"{header}:{number}: {folder}/ must not include {found[1]}")
    print(f"{checked} includes between headers, {failed} of them against the layers")
    sys.exit(failed > 0 or checked == 0)


if len(sys.argv) > 2:
    sys.exit(__doc__)
main(Path(sys.argv[1]) if len(sys.argv) == 2 else Path(__file__).parent.parent / "include/asyncverbs")
