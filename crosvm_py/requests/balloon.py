# SPDX-License-Identifier: BSD-3-Clause
"""The control messages about the balloon."""

from __future__ import annotations

from devices.virtio.commands import MAX_ADJUST_PAGES, BalloonState
from sys_util.facts import fact
from sys_util.typing import TYPE_CHECKING, ClassVar, Final
from sys_util.wire import U64, boolean, integer

if TYPE_CHECKING:
    from sys_util.wire import Check, Message

PAGE_BYTES: Final = 4096


@fact
class BalloonSet:
    """Let the balloon grow or shrink to ``size_bytes``, rounded down to pages, at most all RAM."""

    TYPE: ClassVar[int] = 16
    FIELDS: ClassVar[tuple[Check, ...]] = (U64,)
    ANSWER: ClassVar[type[Message]] = BalloonState
    size_bytes: int


@fact
class BalloonAdjust:
    """Let the balloon grow by ``pages`` of 4 KiB, or shrink if the number is negative."""

    TYPE: ClassVar[int] = 17
    FIELDS: ClassVar[tuple[Check, ...]] = (integer(-MAX_ADJUST_PAGES, MAX_ADJUST_PAGES),)
    ANSWER: ClassVar[type[Message]] = BalloonState
    pages: int


@fact
class BalloonQuery:
    """Return the state of the balloon.

    ``refresh`` also asks the guest for statistics, ``hint`` for its free pages. The answer to this
    request does not have them yet. A later answer has the statistics if its ``updates`` is greater,
    and the free pages if its ``hint_done`` is true. While a guest reports its free pages, its
    statistics count them as used.
    """

    TYPE: ClassVar[int] = 18
    FIELDS: ClassVar[tuple[Check, ...]] = (boolean, boolean)
    ANSWER: ClassVar[type[Message]] = BalloonState
    refresh: bool
    hint: bool
