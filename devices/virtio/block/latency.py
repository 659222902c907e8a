# SPDX-License-Identifier: BSD-3-Clause
"""How many reads and writes a disk did, and how long some of them took.

The engine has the same cells (``engine/src/latency.rs``). It looks at the clock for one request of
eight; Python does so for all that it serves.
"""

from __future__ import annotations

from sys_util.typing import Final

_KINDS: Final = ("read", "write")
# In the order of the cells; times are in nanoseconds, and 0 before the first one.
DISK_COUNTERS: Final = tuple(
    f"{kind}_{what}" for kind in _KINDS for what in ("ops", "timed", "ns", "min_ns", "max_ns")
)
_OPS, _TIMED, _SUM, _MIN, _MAX = range(5)
_WRITES: Final = 5
_WRAP: Final = (1 << 64) - 1


def note(cells: memoryview[int], ns: int, *, write: bool) -> None:
    """Count a read or write that took ``ns`` in the device's own counters."""
    at = _WRITES if write else 0
    is_first = not cells[at + _TIMED]
    if is_first or ns < cells[at + _MIN]:
        cells[at + _MIN] = ns
    if is_first or ns > cells[at + _MAX]:
        cells[at + _MAX] = ns
    for each, amount in ((_OPS, 1), (_TIMED, 1), (_SUM, ns)):
        cells[at + each] = (cells[at + each] + amount) & _WRAP
