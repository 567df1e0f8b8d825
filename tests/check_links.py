#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Checks that links lead somewhere: those of Markdown files to files of the repository and to headings,
those of HTML pages to each other and to anchors. Links to other hosts are not followed.

Usage: tests/check_links.py FILE-OR-DIRECTORY...     a directory stands for its HTML pages
"""

import functools
import re
import sys
from html import unescape
from pathlib import Path
from urllib.parse import unquote


def links_of(path):
    text = path.read_text(errors="replace")
    if path.suffix == ".md":
        text = re.sub(r"^```.*?^```$|`[^`\n]*`", "", text, flags=re.MULTILINE | re.DOTALL)
        return [target for target in re.findall(r"\]\(([^)\s]+)[^)]*\)", text) if not target.startswith("@ref")]
    # Doxygen 1.9 links to the section of nested classes also where all of them are private.
    return [unescape(target) for target in re.findall(r'<[^>]*\s(?:href|src)="([^"]+)"', text)
            if target != "#nested-classes"]


@functools.cache
def anchors_of(path):
    text = path.read_text(errors="replace")
    if path.suffix == ".md":
        headings = re.findall(r"^#+ (.*?)(?: \{#\w+\})?$", text, re.MULTILINE)
        return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}
    return set(re.findall(r'\b(?:id|name)="([^"]+)"', text))


def is_dead(page, link):
    if re.match(r"[a-z]+:", link):
        return False
    file, _, anchor = unquote(link).partition("#")
    target = page.parent / file if file else page
    return not target.exists() or bool(anchor and target.is_file() and anchor not in anchors_of(target))


pages = []
for argument in map(Path, sys.argv[1:]):
    pages += sorted(argument.rglob("*.html")) if argument.is_dir() else [argument]
if not pages:
    sys.exit(__doc__)
checked = 0
dead = []
for page in pages:
    links = links_of(page)
    checked += len(links)
    dead += [(page, link) for link in links if is_dead(page, link)]
for page, link in dead:
    print(f"{page}: {link} leads nowhere")
print(f"{checked} links in {len(pages)} pages, {len(dead)} of them dead")
sys.exit(bool(dead) or not checked)
