# SPDX-License-Identifier: BSD-3-Clause
"""The control messages about the balloon."""

from __future__ import annotations

from sys_util.facts import fact
from sys_util.typing import TYPE_CHECKING, ClassVar, Final
from sys_util.wire import U32, U64, boolean, integer, record, sequence

if TYPE_CHECKING:
    from sys_util.wire import Check, Message

PAGE_BYTES: Final = 4096

_MAX_STATS: Final = 32
_MAX_TAG: Final = 255
_MAX_ADJUST: Final = 1 << 32


@fact
class BalloonState:
    """How the balloon stands.

    Args:
        target_pages: how large the host wants it.
        actual_pages: how large the guest says it is.
        released_bytes: how much the host has got back so far; pages count each time.
        has_driver: whether a driver serves the device now.
        has_stats: whether that driver tells statistics.
        updates: how often it has told them.
        stats: tags and values it told last (``devices.virtio.balloon.stats``).
        hint_done: whether no round of hints is under way.
        hinted_bytes: what the guest said is free, in the last round of hints.
        clamped: the target is not what was asked for: the memory is smaller, or 0 the least.
    """

    TYPE: ClassVar[int] = 80
    FIELDS: ClassVar[tuple[Check, ...]] = (
        U32,
        U32,
        U64,
        boolean,
        boolean,
        U64,
        sequence(record(lambda *pair: pair, integer(0, _MAX_TAG), U64), _MAX_STATS),
        boolean,
        U64,
        boolean,
    )
    target_pages: int
    actual_pages: int
    released_bytes: int
    has_driver: bool
    has_stats: bool
    updates: int
    stats: tuple[tuple[int, int], ...]
    hint_done: bool
    hinted_bytes: int
    clamped: bool


@fact
class BalloonSet:
    """Let the balloon grow or shrink to ``size_bytes``, in whole pages and within the memory."""

    TYPE: ClassVar[int] = 16
    FIELDS: ClassVar[tuple[Check, ...]] = (U64,)
    ANSWER: ClassVar[type[Message]] = BalloonState
    size_bytes: int


@fact
class BalloonAdjust:
    """Let the balloon grow by ``pages`` of 4 KiB, or shrink where they are negative."""

    TYPE: ClassVar[int] = 17
    FIELDS: ClassVar[tuple[Check, ...]] = (integer(-_MAX_ADJUST, _MAX_ADJUST),)
    ANSWER: ClassVar[type[Message]] = BalloonState
    pages: int


@fact
class BalloonQuery:
    """Tell how the balloon stands.

    ``refresh`` also asks the guest for statistics, ``hint`` for its free pages. They are not in
    the answer to this request, but in a later one in which ``updates`` is greater, or in which
    ``hint_done`` is true. While a guest hints it counts its free pages as used.
    """

    TYPE: ClassVar[int] = 18
    FIELDS: ClassVar[tuple[Check, ...]] = (boolean, boolean)
    ANSWER: ClassVar[type[Message]] = BalloonState
    refresh: bool
    hint: bool
