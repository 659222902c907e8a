# SPDX-License-Identifier: BSD-3-Clause
"""What the vmm and a device process say to each other.

Requests of the vmm carry an id that the device gives back in ``Done``; nothing waits for it but a
deadline. The descriptors of ``Activate`` and ``EnableQueue`` are two for each queue: kick, call.
"""

from __future__ import annotations

from devices.virtio.backend import QueueActivation, QueuePosition, RingPosition
from devices.virtio.commands import ANSWERS, COMMANDS
from sys_util.facts import fact
from sys_util.typing import TYPE_CHECKING, ClassVar, Final, NamedTuple
from sys_util.wire import (
    U16,
    U32,
    U64,
    Codec,
    blob,
    boolean,
    integer,
    nested,
    optional,
    record,
    sequence,
    text,
)

if TYPE_CHECKING:
    from devices.virtio.commands import Command
    from sys_util.wire import Check, Message

MAX_QUEUES: Final = 64
MAX_CONFIG_BYTES: Final = 4096
MAX_CONFIG_WRITES: Final = 256  # in one message
MAX_HOLDS: Final = 4
MAX_TIMER_MS: Final = 1 << 40

# A queue's descriptors travel beside the message; in it they are -1.
_NO_FD: Final = integer(-1, -1)
_QUEUE: Final = record(QueueActivation, U16, U16, U64, U64, U64, _NO_FD, _NO_FD, boolean)
_ID: Final = U32


def without_fds(queue: QueueActivation) -> QueueActivation:
    """Return ``queue`` as it crosses in a message."""
    return queue._replace(kick_fd=-1, call_fd=-1)


@fact
class Activate:
    """The driver is ready: serve these queues with these features."""

    TYPE: ClassVar[int] = 1
    FIELDS: ClassVar[tuple[Check, ...]] = (_ID, U64, sequence(_QUEUE, MAX_QUEUES))
    request_id: int
    features: int
    queues: tuple[QueueActivation, ...]


@fact
class EnableQueue:
    """Serve one more queue."""

    TYPE: ClassVar[int] = 2
    FIELDS: ClassVar[tuple[Check, ...]] = (_ID, _QUEUE)
    request_id: int
    queue: QueueActivation


@fact
class ResetQueue:
    """Stop one queue; after ``Done`` its memory is not touched any more."""

    TYPE: ClassVar[int] = 3
    FIELDS: ClassVar[tuple[Check, ...]] = (_ID, U16)
    request_id: int
    index: int


@fact
class Reset:
    """Stop every queue and forget the driver."""

    TYPE: ClassVar[int] = 4
    FIELDS: ClassVar[tuple[Check, ...]] = (_ID,)
    request_id: int


class ConfigWrite(NamedTuple):
    """One access of the driver."""

    offset: int
    data: bytes


@fact
class WriteConfig:
    """The driver wrote to the device configuration, once or several times."""

    TYPE: ClassVar[int] = 5
    FIELDS: ClassVar[tuple[Check, ...]] = (
        _ID,
        sequence(record(ConfigWrite, U16, blob(8)), MAX_CONFIG_WRITES),
    )
    request_id: int
    writes: tuple[ConfigWrite, ...]


@fact
class Pause:
    """Finish what is in flight and serve nothing until ``Resume``."""

    TYPE: ClassVar[int] = 6
    FIELDS: ClassVar[tuple[Check, ...]] = (_ID,)
    request_id: int


@fact
class Resume:
    """Serve again."""

    TYPE: ClassVar[int] = 7
    FIELDS: ClassVar[tuple[Check, ...]] = (_ID,)
    request_id: int


@fact
class Order:
    """Do what the user asks for; ``Answer`` follows, not ``Done``."""

    TYPE: ClassVar[int] = 8
    FIELDS: ClassVar[tuple[Check, ...]] = (_ID, nested(COMMANDS))
    request_id: int
    command: Command


@fact
class Ping:
    """Give a sign of life."""

    TYPE: ClassVar[int] = 9
    FIELDS: ClassVar[tuple[Check, ...]] = (_ID,)
    request_id: int


@fact
class ConfigTaken:
    """The driver reads the configuration of ``ConfigChanged`` with this number from now on."""

    TYPE: ClassVar[int] = 10
    FIELDS: ClassVar[tuple[Check, ...]] = (U32,)
    number: int


@fact
class Describe:
    """Tell how the queues stand, without changing anything; ``Description`` follows."""

    TYPE: ClassVar[int] = 11
    FIELDS: ClassVar[tuple[Check, ...]] = (_ID,)
    request_id: int


@fact
class Ready:
    """The first message of a device: it is in its jail, and this is what it offers.

    ``early_writes``: a driver may write to the configuration before it has negotiated.
    """

    TYPE: ClassVar[int] = 32
    FIELDS: ClassVar[tuple[Check, ...]] = (
        U16,
        U64,
        sequence(U16, MAX_QUEUES),
        blob(MAX_CONFIG_BYTES),
        boolean,
    )
    device_type: int
    features: int
    queue_sizes: tuple[int, ...]
    config: bytes
    early_writes: bool = False


@fact
class Done:
    """A request is carried out."""

    TYPE: ClassVar[int] = 33
    FIELDS: ClassVar[tuple[Check, ...]] = (_ID,)
    request_id: int


@fact
class QueueFailed:
    """The driver made a queue unusable; the device needs a reset (virtio 1.3 §2.1.2)."""

    TYPE: ClassVar[int] = 34
    FIELDS: ClassVar[tuple[Check, ...]] = (U16, text(512))
    index: int
    reason: str


@fact
class ConfigChanged:
    """The device configuration is now another one.

    ``by_driver``: by a write of the driver, which need not be told. ``ConfigTaken`` answers with
    the number.
    """

    TYPE: ClassVar[int] = 35
    FIELDS: ClassVar[tuple[Check, ...]] = (blob(MAX_CONFIG_BYTES), boolean, U32)
    config: bytes
    by_driver: bool = False
    number: int = 0


@fact
class LogLine:
    """A line for the vmm's log."""

    TYPE: ClassVar[int] = 36
    FIELDS: ClassVar[tuple[Check, ...]] = (U16, text(128), text(4096))
    level: int
    module: str
    line: str


@fact
class CallDenied:
    """The last message: the filter trapped a system call. Sent by the handler of SIGSYS."""

    TYPE: ClassVar[int] = 37
    FIELDS: ClassVar[tuple[Check, ...]] = (U32,)
    number: int


@fact
class Crashed:
    """The last message: our own bug, or a host that failed the device."""

    TYPE: ClassVar[int] = 38
    FIELDS: ClassVar[tuple[Check, ...]] = (text(8192),)
    report: str


@fact
class Answer:
    """What came of an ``Order``: the answer of its command, or ``Refused``."""

    TYPE: ClassVar[int] = 39
    FIELDS: ClassVar[tuple[Check, ...]] = (_ID, nested(ANSWERS))
    request_id: int
    answer: Message


_RING: Final = record(RingPosition, *(U16,) * 5, boolean)


@fact
class Description:
    """How the queues stand.

    ``held``: why no event of the device is served now. ``timer_ms``: when the next timer is due,
    nil if there is none; below 0 if it is overdue.
    """

    TYPE: ClassVar[int] = 40
    FIELDS: ClassVar[tuple[Check, ...]] = (
        _ID,
        sequence(text(16), MAX_HOLDS),
        optional(integer(-MAX_TIMER_MS, MAX_TIMER_MS)),
        sequence(record(QueuePosition, U16, text(8), optional(_RING), boolean), MAX_QUEUES),
    )
    request_id: int
    held: tuple[str, ...]
    timer_ms: int | None
    queues: tuple[QueuePosition, ...]


# What the SIGSYS handler writes before the call's number: an array of two, and the type.
CALL_DENIED_HEAD: Final = bytes([0x92, CallDenied.TYPE])

DEVICE_CODEC: Final = Codec(
    (
        *(Activate, EnableQueue, ResetQueue, Reset, WriteConfig, Pause, Resume, Order, Ping),
        *(ConfigTaken, Describe),
    )
)
VMM_CODEC: Final = Codec(
    (Ready, Done, QueueFailed, ConfigChanged, LogLine, CallDenied, Crashed, Answer, Description)
)
