# SPDX-License-Identifier: BSD-3-Clause
"""Long work shows how far it is."""

from __future__ import annotations

import sys


def report(line: str) -> None:
    """Tell whoever watches."""
    sys.stderr.write(f"{line}\n")
    sys.stderr.flush()
