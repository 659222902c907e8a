# SPDX-License-Identifier: BSD-3-Clause
"""Import a module whose name is known at run time only."""

from __future__ import annotations

import os
import sys

from sys_util.typing import TYPE_CHECKING

if TYPE_CHECKING:
    from types import ModuleType


def load_module(name: str) -> ModuleType:
    """Import and return a module, as ``importlib.import_module``, which imports two more, does."""
    __import__(name)
    return sys.modules[name]


def is_installed(package: str) -> bool:
    """Return whether a package, which has a folder, could be imported; do not import it."""
    return any(os.path.isdir(os.path.join(entry, package)) for entry in sys.path)
