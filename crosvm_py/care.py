# SPDX-License-Identifier: BSD-3-Clause
"""How device processes are supervised: ``--device-restart`` and ``--device-timeout``."""

from __future__ import annotations

from sys_util.typing import Final, NamedTuple, TypeAlias


class Rate(NamedTuple):
    """At most ``restarts`` restarts within ``seconds``."""

    restarts: int
    seconds: float


# How many restarts a device may have while the VM runs, or at which rate; ``None`` is no limit.
RestartLimit: TypeAlias = "int | Rate | None"

ALWAYS: Final = None
NEVER: Final = 0
DEFAULT_LIMIT: Final = Rate(10, 60.0)

# The most time for an answer: enough for the flush of a disk on a slow host.
DEFAULT_TIMEOUT_SECONDS: Final = 30.0


class Care(NamedTuple):
    """How devices are supervised.

    ``restarts`` is how often each device may get a new process after an unexpected end; with
    ``NEVER`` the first such end ends the VM. A process that does not answer, or serves none of its
    queues, for ``timeout_seconds`` is killed.
    """

    restarts: RestartLimit = DEFAULT_LIMIT
    timeout_seconds: float = DEFAULT_TIMEOUT_SECONDS


DEFAULT_CARE: Final = Care()
