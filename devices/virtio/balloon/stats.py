# SPDX-License-Identifier: BSD-3-Clause
"""The guest's memory statistics as the balloon driver sends them (virtio 1.3 §5.5.6.3).

A buffer holds pairs of tag and value in any order. A driver omits what it does not know.
"""

from __future__ import annotations

from struct import Struct

from sys_util.typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from devices.virtio.queue.chain import Reader

# In the order of their tags. Memory, swap, scans and reclaims are in bytes, the others are counts.
# Tags from 10 on came after virtio 1.3, with Linux 6.12.
STAT_NAMES: Final = (
    "swap_in",
    "swap_out",
    "major_faults",
    "minor_faults",
    "free_memory",
    "total_memory",
    "available_memory",
    "disk_caches",
    "hugetlb_allocations",
    "hugetlb_failures",
    "oom_kills",
    "alloc_stalls",
    "async_scans",
    "direct_scans",
    "async_reclaims",
    "direct_reclaims",
)

# Far more than there are tags; a driver may offer gigabytes.
MAX_STATISTICS: Final = 256

_PAIR: Final = Struct("<HQ")


def read_stats(reader: Reader) -> dict[int, int]:
    """Return the value of each known tag; if a tag repeats, the last value.

    An incomplete pair at the end is ignored.
    """
    count = min(reader.remaining // _PAIR.size, MAX_STATISTICS)
    pairs = _PAIR.iter_unpack(reader.read(count * _PAIR.size))
    return {tag: value for tag, value in pairs if tag < len(STAT_NAMES)}
