# SPDX-License-Identifier: BSD-3-Clause
"""How the user wants device processes to be looked after; ``--device-restart`` and its sister."""

from __future__ import annotations

from sys_util.typing import Final, NamedTuple, TypeAlias


class Rate(NamedTuple):
    """So many restarts in so many seconds."""

    restarts: int
    seconds: float


# How many restarts there may be in the life of a VM, or at which rate.
RestartLimit: TypeAlias = "int | Rate | None"

ALWAYS: Final = None
NEVER: Final = 0
DEFAULT_LIMIT: Final = Rate(10, 60.0)

# The longest that an answer may take: a disk's flush on a slow host fits, a hung process does not.
DEFAULT_TIMEOUT_SECONDS: Final = 30.0


class Care(NamedTuple):
    """How devices are looked after.

    ``restarts`` is how often each may get a new process after an unexpected end; with ``NEVER`` the
    first one ends the VM. A process that gives no sign of life, or serves none of its queues, for
    ``timeout_seconds`` is ended.
    """

    restarts: RestartLimit = DEFAULT_LIMIT
    timeout_seconds: float = DEFAULT_TIMEOUT_SECONDS


DEFAULT_CARE: Final = Care()
