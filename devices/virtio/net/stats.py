# SPDX-License-Identifier: BSD-3-Clause
"""The counters that only a network device has."""

from __future__ import annotations

from devices.virtio.counters import CELL_COUNT, MAX_SPECIFIC
from sys_util.typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from devices.virtio.counters import Counters

_FIRST_CELL: Final = CELL_COUNT - MAX_SPECIFIC
_MAX_START: Final = 1 << 62

NET_STATS: Final = (
    "rx_frames",  # delivered to the driver
    "rx_large",  # of these, segments for the guest's own stack to cut (GSO)
    "rx_dropped",  # did not fit, or came while the link was down
    "rx_unusable",  # chains that no frame can be stored in
    "tx_frames",  # passed on to the host
    "tx_large",  # of these, segments for the host's stack to cut
    "tx_dropped",  # refused by the host, or sent while the link was down
    "tx_malformed",  # with a header or a length that no frame can have
)


class NetStats:
    """Plain numbers that only grow, by the names in ``NET_STATS``."""

    __slots__ = NET_STATS

    def __init__(self) -> None:
        self.rx_frames = 0
        self.rx_large = 0
        self.rx_dropped = 0
        self.rx_unusable = 0
        self.tx_frames = 0
        self.tx_large = 0
        self.tx_dropped = 0
        self.tx_malformed = 0

    def take_up(self, counters: Counters) -> None:
        """Count on from the numbers of the last process, if they are possible."""
        cells = counters.cells
        for at, name in enumerate(NET_STATS, _FIRST_CELL):
            setattr(self, name, cells[at] if cells[at] <= _MAX_START else 0)

    def publish(self, counters: Counters) -> None:
        """Show the numbers to the vmm, after each turn."""
        cells = counters.cells
        for at, name in enumerate(NET_STATS, _FIRST_CELL):
            cells[at] = getattr(self, name)
