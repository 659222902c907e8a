# SPDX-License-Identifier: BSD-3-Clause
"""Every attempt, in the order of the matrix."""

from __future__ import annotations

from typing import Final

from tests.breakout import (
    brokering,
    files,
    ioctls,
    kernel,
    limits,
    namespaces,
    network,
    processes,
    programs,
)

ATTEMPTS: Final = (
    *files.ATTEMPTS,
    *network.ATTEMPTS,
    *brokering.ATTEMPTS,
    *processes.ATTEMPTS,
    *programs.ATTEMPTS,
    *namespaces.ATTEMPTS,
    *kernel.ATTEMPTS,
    *ioctls.ATTEMPTS,
    *limits.ATTEMPTS,
)
GROUPS: Final = tuple(dict.fromkeys(attempt.group for attempt in ATTEMPTS))
