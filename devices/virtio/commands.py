# SPDX-License-Identifier: BSD-3-Clause
"""The commands that a user can give to a running device, and the device's answers.

These are messages (``sys_util/wire.py``) that cross the channel of a device process inside its
``Command`` and ``Answer``. ``ANSWER`` of a command is the class of what comes back, if it is not
``Refused``; ``WORD`` names the command in messages to the user.
"""

from __future__ import annotations

from devices.virtio.rate_limiter import LIMIT_NAMES, MAX_TOKENS
from sys_util.facts import fact
from sys_util.typing import TYPE_CHECKING, ClassVar, Final, Protocol
from sys_util.wire import U16, U32, U64, Codec, boolean, integer, optional, record, sequence, text

if TYPE_CHECKING:
    from sys_util.wire import Check, Message

MAX_REASON_CHARS: Final = 512

_MAX_STATS: Final = 32
_MAX_TAG: Final = 255
MAX_ADJUST_PAGES: Final = 1 << 32


class Command(Protocol):
    """What every command declares."""

    TYPE: ClassVar[int]
    FIELDS: ClassVar[tuple[Check, ...]]
    ANSWER: ClassVar[type[Message]]
    WORD: ClassVar[str]


@fact
class Obeyed:
    """The command was carried out."""

    TYPE: ClassVar[int] = 64
    FIELDS: ClassVar[tuple[Check, ...]] = ()


@fact
class Refused:
    """The command was not carried out; ``reason`` is for the user."""

    TYPE: ClassVar[int] = 65
    FIELDS: ClassVar[tuple[Check, ...]] = (text(MAX_REASON_CHARS),)
    reason: str


@fact
class DeviceLimits:
    """The present limits of a device's requests, in the order of ``LIMIT_NAMES``."""

    TYPE: ClassVar[int] = 67
    FIELDS: ClassVar[tuple[Check, ...]] = (
        record(lambda *values: values, *(integer(0, MAX_TOKENS) for _ in LIMIT_NAMES)),
    )
    values: tuple[int, ...]


@fact
class DiskSize:
    """The size of a disk as the guest knows it now."""

    TYPE: ClassVar[int] = 68
    FIELDS: ClassVar[tuple[Check, ...]] = (U64,)
    size_bytes: int


@fact
class Waiting:
    """How many bytes wait for somebody on the host to read them."""

    TYPE: ClassVar[int] = 70
    FIELDS: ClassVar[tuple[Check, ...]] = (U64,)
    size_bytes: int


@fact
class BalloonState:
    """The state of the balloon.

    Args:
        target_pages: how large the host wants it.
        actual_pages: how large the guest says it is.
        released_bytes: how much the host has got back so far; a page counts each time.
        has_driver: whether a driver serves the device now.
        has_stats: whether that driver tells statistics.
        updates: how often it has told them.
        stats: tags and values that it told last (``devices.virtio.balloon.stats``).
        hint_done: whether no round of hints is under way.
        hinted_bytes: how much the guest said is free, in the last round of hints.
        clamped: whether the user asked for a target below 0 or above the guest's memory, so that
            the target is the nearest possible one.
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
class SetLimits:
    """Change the limits of requests: a value for each of ``LIMIT_NAMES``, None to keep it."""

    TYPE: ClassVar[int] = 1
    FIELDS: ClassVar[tuple[Check, ...]] = (
        record(lambda *values: values, *(optional(U64) for _ in LIMIT_NAMES)),
    )
    ANSWER: ClassVar[type[Message]] = DeviceLimits
    WORD: ClassVar[str] = "limit"
    values: tuple[int | None, ...]


@fact
class SetLink:
    """Pull the cable of a network card, or put it back."""

    TYPE: ClassVar[int] = 2
    FIELDS: ClassVar[tuple[Check, ...]] = (boolean,)
    ANSWER: ClassVar[type[Message]] = Obeyed
    WORD: ClassVar[str] = "link"
    up: bool


@fact
class CheckSize:
    """Say whether the disk could have this size, and which size it has; change nothing."""

    TYPE: ClassVar[int] = 3
    FIELDS: ClassVar[tuple[Check, ...]] = (U64,)
    ANSWER: ClassVar[type[Message]] = DiskSize
    WORD: ClassVar[str] = "resize"
    size_bytes: int


@fact
class SetSize:
    """Use this size for the disk: its image has it already, or will soon be truncated to it.

    From now on the device touches nothing behind this size. If it was ``measured``, it need not be
    a multiple of the block size: the guest does not see the rest after the last whole block.
    """

    TYPE: ClassVar[int] = 4
    FIELDS: ClassVar[tuple[Check, ...]] = (U64, boolean)
    ANSWER: ClassVar[type[Message]] = Obeyed
    WORD: ClassVar[str] = "resize"
    size_bytes: int
    measured: bool = False


@fact
class SetTarget:
    """Let the balloon grow or shrink to this many pages, within the memory of the guest."""

    TYPE: ClassVar[int] = 5
    FIELDS: ClassVar[tuple[Check, ...]] = (U64,)
    ANSWER: ClassVar[type[Message]] = BalloonState
    WORD: ClassVar[str] = "balloon"
    pages: int


@fact
class AdjustTarget:
    """Let the balloon grow by this many pages, or shrink if the number is negative."""

    TYPE: ClassVar[int] = 6
    FIELDS: ClassVar[tuple[Check, ...]] = (integer(-MAX_ADJUST_PAGES, MAX_ADJUST_PAGES),)
    ANSWER: ClassVar[type[Message]] = BalloonState
    WORD: ClassVar[str] = "balloon"
    pages: int


@fact
class TellState:
    """Tell the state of the balloon.

    ``refresh`` asks the guest for statistics, which have come when ``updates`` has grown; ``hint``
    asks for its free pages, which are known when ``hint_done`` is true again.
    """

    TYPE: ClassVar[int] = 7
    FIELDS: ClassVar[tuple[Check, ...]] = (boolean, boolean)
    ANSWER: ClassVar[type[Message]] = BalloonState
    WORD: ClassVar[str] = "balloon"
    refresh: bool = False
    hint: bool = False


@fact
class SetWindow:
    """The terminal behind a console's port has another size."""

    TYPE: ClassVar[int] = 8
    FIELDS: ClassVar[tuple[Check, ...]] = (U16, U16, U16)
    ANSWER: ClassVar[type[Message]] = Obeyed
    WORD: ClassVar[str] = "window size"
    port: int
    columns: int
    rows: int


@fact
class Drain:
    """Write the output that still waits for its readers, as much of it as they take now."""

    TYPE: ClassVar[int] = 9
    FIELDS: ClassVar[tuple[Check, ...]] = ()
    ANSWER: ClassVar[type[Message]] = Waiting
    WORD: ClassVar[str] = "drain"


@fact
class SetRequested:
    """Ask the guest to have so many bytes of virtio-mem plugged, within what there can be."""

    TYPE: ClassVar[int] = 10
    FIELDS: ClassVar[tuple[Check, ...]] = (U64,)
    ANSWER: ClassVar[type[Message]] = Obeyed
    WORD: ClassVar[str] = "resize"
    size_bytes: int


COMMANDS: Final = Codec(
    (
        SetLimits,
        SetLink,
        CheckSize,
        SetSize,
        SetTarget,
        AdjustTarget,
        TellState,
        SetWindow,
        Drain,
        SetRequested,
    )
)
ANSWERS: Final = Codec((Obeyed, Refused, DeviceLimits, DiskSize, Waiting, BalloonState))
