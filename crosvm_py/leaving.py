# SPDX-License-Identifier: BSD-3-Clause
"""How a process ends whose filter denies system calls that Python makes at its end.

The interpreter restores signal stacks and handlers and frees memory, and does more if variables
such as PYTHONFAULTHANDLER are set. If the filter denied one of these calls, the process would be
killed, and the exit status of the VM would be lost. So such a process ends by ``os._exit``.
"""

from __future__ import annotations

import sys

_is_confined = False


def expect_filter() -> None:
    """Prepare the process for a filter: from now on it ends without the interpreter's clean-up."""
    global _is_confined
    _is_confined = True
    end_fault_handler()


def end_fault_handler() -> None:
    """Undo PYTHONFAULTHANDLER: its handler raises the signal again, which filters deny."""
    module = sys.modules.get("faulthandler")
    if module is not None:
        module.disable()


def is_confined() -> bool:
    """Return whether ``expect_filter`` was called."""
    return _is_confined
