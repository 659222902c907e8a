# SPDX-License-Identifier: BSD-3-Clause
"""What a restarted balloon process has to know, and how it checks what was saved."""

from __future__ import annotations

from devices.virtio.balloon.stats import STAT_NAMES
from sys_util.errors import ProtocolError
from sys_util.stranger import brief
from sys_util.typing import TYPE_CHECKING, Final, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Self

U32_MAX: Final = 0xFFFF_FFFF
_U64_MAX: Final = 0xFFFF_FFFF_FFFF_FFFF

VIRTIO_BALLOON_CMD_ID_STOP: Final = 0
FIRST_CMD_ID: Final = 2

NOT_HELD: Final = -1

# The greatest count of bytes and of updates.
MOST: Final = 1 << 62


class BalloonState(NamedTuple):
    """Sizes in pages; ``held`` is the place in its queue of the statistics buffer that we hold."""

    target_pages: int
    last_cmd_id: int = FIRST_CMD_ID - 1
    updates: int = 0  # buffers of statistics since the start
    hinted_bytes: int = 0
    # What the driver said, or is being told.
    actual_pages: int = 0
    poison: int = 0
    cmd_id: int = VIRTIO_BALLOON_CMD_ID_STOP
    hinting: int = 0  # 1 between the driver's command id and its STOP
    held: int = NOT_HELD

    def without_driver(self) -> Self:
        """Return the state for the next driver."""
        fresh = BalloonState(self.target_pages)
        return self._replace(
            actual_pages=fresh.actual_pages,
            poison=fresh.poison,
            cmd_id=fresh.cmd_id,
            hinting=fresh.hinting,
            held=fresh.held,
        )


def read_state(fields: Mapping[str, object], page_count: int) -> BalloonState:
    """Return what an earlier process saved, of a guest with ``page_count`` pages.

    Raises:
        ProtocolError: no healthy process saves that.
    """
    most = BalloonState(*(page_count, U32_MAX, MOST, MOST, U32_MAX, U32_MAX, U32_MAX, 1, 0xFFFF))
    values = fields.get("state")
    if type(values) is not list or len(values) != len(most):
        raise ProtocolError(f"state: {brief(values)}")
    for value, low, high in zip(values, (*(0,) * 8, NOT_HELD), most, strict=True):
        if type(value) is not int or not low <= value <= high:
            raise ProtocolError(f"{brief(value)} is not in {low}..{high}")
    return BalloonState(*values)


def read_saved_stats(fields: Mapping[str, object]) -> dict[int, int]:
    """Return the statistics that an earlier process saved: values by their tags.

    Raises:
        ProtocolError: what it saved is no statistics.
    """
    stats = fields.get("stats")
    if type(stats) is not list or len(stats) > len(STAT_NAMES):
        raise ProtocolError(f"statistics: {brief(stats)}")
    found: dict[int, int] = {}
    for pair in stats:
        if type(pair) is not list or [type(item) for item in pair] != [int, int]:
            raise ProtocolError(f"statistics with {brief(pair)}")
        tag, value = pair
        if not (0 <= tag < len(STAT_NAMES) and 0 <= value <= _U64_MAX):
            raise ProtocolError(f"statistics with {tag} = {value}")
        found[tag] = value
    return found


def read_released(fields: Mapping[str, object]) -> int:
    """Return how many bytes earlier processes gave back.

    Raises:
        ProtocolError: it is no possible number.
    """
    released = fields.get("released")
    if type(released) is not int or not 0 <= released <= MOST:
        raise ProtocolError(f"{brief(released)} bytes given back")
    return released
