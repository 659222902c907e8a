# SPDX-License-Identifier: BSD-3-Clause
"""The messages between the vmm and a device process.

Each request of the vmm has an id that the device returns in ``Done``. The vmm does not block until
then, but a device that is too late is ended. ``Activate`` and ``EnableQueue`` come with two
descriptors for each queue, the eventfds for kicks and for calls (interrupts).
"""

from __future__ import annotations

from devices.virtio.backend import SERVERS, QueueActivation, QueuePosition, RingPosition
from devices.virtio.commands import ANSWERS, COMMANDS
from sys_util.child_log import CHILD_MESSAGES
from sys_util.facts import fact
from sys_util.typing import TYPE_CHECKING, ClassVar, Final, NamedTuple
from sys_util.wire import (
    U16,
    U32,
    U64,
    Codec,
    blob,
    boolean,
    choice,
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

# Descriptors are sent beside the message; in the message itself they are -1.
_NO_FD: Final = integer(-1, -1)
_QUEUE: Final = record(QueueActivation, U16, U16, U64, U64, U64, _NO_FD, _NO_FD, boolean)
_ID: Final = U32


def without_fds(queue: QueueActivation) -> QueueActivation:
    """Return ``queue`` as a message contains it, without descriptors."""
    return queue._replace(kick_fd=-1, call_fd=-1)


@fact
class Activate:
    """Serve these queues with these features: the driver has set DRIVER_OK."""

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
    """One write of the driver to the configuration space."""

    offset: int
    data: bytes


@fact
class WriteConfig:
    """Carry out these writes of the driver to the configuration, in order."""

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
    """Carry out a command of the user; ``Answer`` follows, not ``Done``."""

    TYPE: ClassVar[int] = 8
    FIELDS: ClassVar[tuple[Check, ...]] = (_ID, nested(COMMANDS))
    request_id: int
    command: Command


@fact
class Ping:
    """Answer with ``Done``, to show that the process does not hang."""

    TYPE: ClassVar[int] = 9
    FIELDS: ClassVar[tuple[Check, ...]] = (_ID,)
    request_id: int


@fact
class ConfigTaken:
    """The vmm has the configuration of ``ConfigChanged`` ``number``; the driver reads it now."""

    TYPE: ClassVar[int] = 10
    FIELDS: ClassVar[tuple[Check, ...]] = (U32,)
    number: int


@fact
class Describe:
    """Report the state of the queues, without changing anything; ``Description`` follows."""

    TYPE: ClassVar[int] = 11
    FIELDS: ClassVar[tuple[Check, ...]] = (_ID,)
    request_id: int


@fact
class BlocksChanged:
    """The answer to ``ChangeBlocks``: whether the change was carried out, whole, or nothing was."""

    TYPE: ClassVar[int] = 12
    FIELDS: ClassVar[tuple[Check, ...]] = (boolean,)
    done: bool


@fact
class Ready:
    """The first message of a device: it is confined, and offers these features and queues.

    ``early_writes``: drivers may write to the configuration before they negotiate features.
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
    """The device configuration has changed; ``ConfigTaken`` with the same number answers it.

    ``by_driver``: a write of the driver changed it, so the driver gets no interrupt for that.
    """

    TYPE: ClassVar[int] = 35
    FIELDS: ClassVar[tuple[Check, ...]] = (blob(MAX_CONFIG_BYTES), boolean, U32)
    config: bytes
    by_driver: bool = False
    number: int = 0


@fact
class Answer:
    """The result of an ``Order``: the answer to its command, or ``Refused``."""

    TYPE: ClassVar[int] = 39
    FIELDS: ClassVar[tuple[Check, ...]] = (_ID, nested(ANSWERS))
    request_id: int
    answer: Message


_RING: Final = record(RingPosition, *(U16,) * 5, boolean)


@fact
class Description:
    """The state of the queues.

    ``held``: the reasons why the device's events are not served now. ``timer_ms``: the time until
    the next timer is due, negative if it is overdue, ``None`` if there is none.
    """

    TYPE: ClassVar[int] = 40
    FIELDS: ClassVar[tuple[Check, ...]] = (
        _ID,
        sequence(text(16), MAX_HOLDS),
        optional(integer(-MAX_TIMER_MS, MAX_TIMER_MS)),
        sequence(record(QueuePosition, U16, choice(SERVERS), optional(_RING), boolean), MAX_QUEUES),
    )
    request_id: int
    held: tuple[str, ...]
    timer_ms: int | None
    queues: tuple[QueuePosition, ...]


@fact
class ChangeBlocks:
    """Give the guest blocks of memory, or take them: a request of a driver of virtio-mem.

    ``kind`` is one of ``VIRTIO_MEM_REQ_…``. The vmm checks it again.
    """

    TYPE: ClassVar[int] = 41
    FIELDS: ClassVar[tuple[Check, ...]] = (U16, U32, U32)
    kind: int
    first: int
    count: int


DEVICE_CODEC: Final = Codec(
    (
        *(Activate, EnableQueue, ResetQueue, Reset, WriteConfig, Pause, Resume, Order, Ping),
        *(ConfigTaken, Describe, BlocksChanged),
    )
)
VMM_CODEC: Final = Codec(
    (Ready, Done, QueueFailed, ConfigChanged, *CHILD_MESSAGES, Answer, Description, ChangeBlocks)
)
