# SPDX-License-Identifier: BSD-3-Clause
"""``python -m tests.breakout``: try to break out of every device, and print what stopped it.

The exit status is 1 if anything succeeded, or a second wall has a gap.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
from typing import TYPE_CHECKING, Final

from tests.breakout.attempt import KINDS
from tests.breakout.matrix import ALL_GROUPS, Outcomes, Plan, Row, summary

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

LEGEND: Final = """\
F J  the filter stops it, and so does the jail where only the filter is left out
F    the filter stops it
J    the filter lets the call pass, and the jail refuses it, or the broker
V    the vmm ends the device for it          B  the vmm bounds what comes of it
K    the kernel ends the process for it      -  there is nothing to try it on
OUT  it succeeded                            GAP  the filter alone stops it, and should not be alone
"""


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tests.breakout", description=__doc__)
    parser.add_argument("--json", action="store_true", help="print the matrix as JSON")
    parser.add_argument("--summary", action="store_true", help="print the table of SECURITY.md")
    parser.add_argument("--device", action="append", choices=KINDS, help="this kind only; again")
    parser.add_argument("--group", action="append", choices=ALL_GROUPS, help="this only; again")
    parser.add_argument("--without", action="append", choices=ALL_GROUPS, default=[])
    parser.add_argument("--sweep-step", type=int, default=1, help="skip numbers in sweeps")
    parser.add_argument("--flood", type=int, default=3_000, help="messages in each flood")
    return parser


def _lines(rows: Sequence[Row], kinds: Sequence[str]) -> Iterator[str]:
    width = max(len(row.name) for row in rows)
    columns = [max(4, len(kind)) for kind in kinds]
    group = ""
    for row in rows:
        if row.group != group:
            group = row.group
            heads = "  ".join(kind.ljust(size) for kind, size in zip(kinds, columns, strict=True))
            yield f"\n{group.upper().ljust(width)}  {heads}"
        cells = "  ".join(
            row.cells[kind].value.ljust(size) for kind, size in zip(kinds, columns, strict=True)
        )
        yield f"{row.name.ljust(width)}  {cells}".rstrip()


def main(arguments: Sequence[str]) -> int:
    options = _parser().parse_args(arguments)
    if options.summary:
        sys.stdout.write("\n".join(summary()) + "\n")
        return 0
    kinds = options.device or KINDS
    groups = [group for group in options.group or ALL_GROUPS if group not in options.without]
    plan = Plan(kinds, groups, sweep_step=options.sweep_step, flood=options.flood)
    outcomes = Outcomes(plan)
    outcomes.find_out()
    rows = outcomes.rows()
    bad = [row for row in rows if not row.is_good]
    if options.json:
        cells = [{"group": row.group, "name": row.name, "cells": _values(row)} for row in rows]
        host = {"kernel": platform.release(), "uid": os.geteuid()}
        sys.stdout.write(
            json.dumps({**host, "succeeded": len(bad), "rows": cells}, indent=1) + "\n"
        )
    else:
        sys.stdout.write("\n".join([LEGEND, *_lines(rows, kinds), ""]))
        tried = sum(cell.name != "NONE" for row in rows for cell in row.cells.values())
        sys.stdout.write(f"\n{tried} attempts, {len(bad)} of {len(rows)} rows with a hole\n")
    return 1 if bad else 0


def _values(row: Row) -> dict[str, str]:
    return {kind: verdict.name.lower() for kind, verdict in row.cells.items()}


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
