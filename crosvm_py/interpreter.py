# SPDX-License-Identifier: BSD-3-Clause
"""How a process of a run executes a fresh interpreter, which has an address layout of its own."""

from __future__ import annotations

import os
import sys


def interpreter_words(code: str) -> tuple[str, ...]:
    """Return the command that runs ``code`` in isolated mode (-I), without ``site``.

    It writes no bytecode files. Words that follow are in ``sys.argv`` of the code.
    """
    name = getattr(sys, "_base_executable", "") or sys.executable
    optimized = "O" * sys.flags.optimize
    return (name, "-I", "-S", "-B", *([f"-{optimized}"] if optimized else ()), "-c", code)


def module_path() -> tuple[str, ...]:
    """Return the path for imports there: ours, and the folder of this program in any case."""
    path = [os.path.abspath(entry) for entry in sys.path]
    root = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    return tuple(path) if root in path else (*path, root)
