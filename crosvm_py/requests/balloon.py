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
    """Let the balloon grow or shrink to ``size_bytes``, in whole pages and within the memory."""

    TYPE: ClassVar[int] = 16
    FIELDS: ClassVar[tuple[Check, ...]] = (U64,)
    ANSWER: ClassVar[type[Message]] = BalloonState
    size_bytes: int


@fact
class BalloonAdjust:
    """Let the balloon grow by ``pages`` of 4 KiB, or shrink where they are negative."""

    TYPE: ClassVar[int] = 17
    FIELDS: ClassVar[tuple[Check, ...]] = (integer(-MAX_ADJUST_PAGES, MAX_ADJUST_PAGES),)
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
