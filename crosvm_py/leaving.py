# SPDX-License-Identifier: BSD-3-Clause
"""The end of a process whose filter does not know what Python's interpreter does at its end.

The interpreter puts signal stacks and handlers back, frees what is freed with the process anyway,
and more where variables such as PYTHONFAULTHANDLER ask for it. A filter that denied one of these
calls would replace the status of the VM by its own.
"""

from __future__ import annotations

import sys

_is_confined = False


def expect_filter() -> None:
    """Prepare the process for a filter; from now on it leaves without the interpreter's end."""
    global _is_confined
    _is_confined = True
    end_fault_handler()


def end_fault_handler() -> None:
    """Take back PYTHONFAULTHANDLER: its handler raises the signal anew, which filters deny."""
    module = sys.modules.get("faulthandler")
    if module is not None:
        module.disable()


def is_confined() -> bool:
    """Return whether ``expect_filter`` was called."""
    return _is_confined
