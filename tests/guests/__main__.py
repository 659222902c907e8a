# SPDX-License-Identifier: BSD-3-Clause
"""``python3 -m tests.guests``: make the guests, or say where one is."""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING

from tests.guests import builtin, root, stock
from tests.guests.cache import BuildError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

GUESTS: dict[str, Callable[[], Path]] = {
    "builtin": builtin.build,
    "cloud": lambda: stock.build("cloud"),
    "generic": lambda: stock.build(""),
    "root": root.build,
}


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="tests.guests", description=__doc__)
    parser.add_argument("verb", choices=["build", "path"])
    parser.add_argument("names", nargs="*", choices=[*GUESTS, []], help="default: all of them")
    options = parser.parse_args(arguments)
    try:
        for name in options.names or GUESTS:
            folder = GUESTS[name]()
            sys.stdout.write(f"{folder}\n" if options.verb == "path" else f"{name}: {folder}\n")
    except BuildError as error:
        sys.stderr.write(f"tests.guests: {error}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
