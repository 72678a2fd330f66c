"""The generated part of docs/clients.md: which client was run, in which version, with which result."""

import difflib
import re

from support import ROOT

PAGE = ROOT / "docs" / "clients.md"
BEGIN, END = "<!-- Written by tests/clients/run.py --write. -->\n", "<!-- End of what run.py writes. -->\n"


def render(rows):
    lines = ["| client | version | tests | result |", "|---|---|---:|---|"]
    for row in rows:
        result = f"{row['failed']} failed" if row["failed"] else "passed"
        anchor = re.sub(r"[^a-z0-9 -]", "", row["client"].lower()).replace(" ", "-")
        lines.append(f"| [{row['client']}](#{anchor}) | {row['version']} | {row['passed'] + row['failed']} | {result} |")
    for row in rows:
        lines += ["", f"## {row['client']}", ""]
        lines += [f"- {ran[0].upper()}{ran[1:]}." for ran in row["ran"]]
    return "\n".join(lines) + "\n"


def check(rows, write):
    """True if docs/clients.md says what these rows do. With `write`, it is made to."""
    page = PAGE.read_text()
    before, rest = page.split(BEGIN)
    found, after = rest.split(END)
    expected = render(rows)
    if write:
        PAGE.write_text(before + BEGIN + expected + END + after)
        return True
    if found == expected:
        return True
    difference = difflib.unified_diff(found.splitlines(), expected.splitlines(), "docs/clients.md", "this run", lineterm="")
    print("\n".join(difference))
    print("docs/clients.md is not what this run gives; tests/clients/run.py --write updates it")
    return False
