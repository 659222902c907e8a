# SPDX-License-Identifier: BSD-3-Clause
"""Requests for those who debug a hang: where vCPUs are, and the rings and interrupts of devices.

Nothing is stopped to answer them, so the numbers in an answer may be of different moments.
"""

from __future__ import annotations

from crosvm_py.requests.devices import MAX_NAME_CHARS
from devices.pci.msix import VectorState
from devices.virtio.backend import (
    SERVERS,
    DeviceWords,
    QueuePosition,
    RingPosition,
    TransportQueue,
    TransportState,
)
from sys_util.facts import fact
from sys_util.typing import TYPE_CHECKING, ClassVar, Final, NamedTuple
from sys_util.wire import U16, U32, U64, boolean, choice, integer, optional, record, sequence, text

if TYPE_CHECKING:
    from sys_util.wire import Check, Message

MAX_PLACE_CHARS: Final = 256

_MAX_QUEUES: Final = 64
_MAX_TIMER_MS: Final = 1 << 40
_MAX_VCPUS: Final = 1024
_U8: Final = integer(0, 0xFF)


class VcpuPlace(NamedTuple):
    """One vCPU, its thread and where it is.

    ``place`` is "guest" (in KVM_RUN), "exit" (the vmm handles an exit), "held" (paused), "spare"
    (the guest does not have it now) or "ended". ``where`` says more.
    """

    index: int  # type: ignore[assignment]  # hides tuple.index(), which nobody needs here
    thread_id: int
    place: str
    where: str


@fact
class VmDump:
    """The answer to ``DumpVm``: the process id of the vmm, and where each vCPU is."""

    TYPE: ClassVar[int] = 84
    FIELDS: ClassVar[tuple[Check, ...]] = (
        U32,
        sequence(record(VcpuPlace, U16, U32, text(8), text(MAX_PLACE_CHARS)), _MAX_VCPUS),
    )
    pid: int
    vcpus: tuple[VcpuPlace, ...]


@fact
class DumpVm:
    """Return where the vCPUs are."""

    TYPE: ClassVar[int] = 28
    FIELDS: ClassVar[tuple[Check, ...]] = ()
    ANSWER: ClassVar[type[Message]] = VmDump


class RingWords(NamedTuple):
    """The fields of a queue's two rings in guest memory (virtio 1.3 §2.7.6, §2.7.8)."""

    avail_flags: int
    avail_idx: int
    used_event: int
    used_flags: int
    used_idx: int
    avail_event: int


class QueueDump(NamedTuple):
    """One queue: its state in the transport, its rings if it has any, and its wait for a limit."""

    transport: TransportQueue
    ring: RingWords | None
    limit_wait_ms: int


_QUEUE: Final = record(
    QueueDump,
    record(
        TransportQueue,
        *(U16, boolean, boolean, U16, boolean),
        *(U64, U64, U64),
        *(boolean, boolean, boolean),
    ),
    optional(record(RingWords, *(U16,) * 6)),
    U64,
)


_POSITION: Final = record(
    *(QueuePosition, U16, choice(SERVERS)),
    *(optional(record(RingPosition, *(U16,) * 5, boolean)), boolean),
)
_WORDS: Final = record(
    DeviceWords,
    sequence(text(16), 4),
    optional(integer(-_MAX_TIMER_MS, _MAX_TIMER_MS)),
    sequence(_POSITION, _MAX_QUEUES),
)
_VECTOR: Final = record(VectorState, boolean, boolean, boolean, U64, U32)
_TRANSPORT: Final = record(
    TransportState,
    *(_U8, U64, boolean, boolean, boolean, U16, _U8, boolean, boolean),
    sequence(record(TransportQueue), 0),
    sequence(_VECTOR, _MAX_QUEUES + 1),
)


@fact
class DeviceDump:
    """The state of one device.

    Args:
        name: its name.
        pid: its process.
        state: the same word as in ``DeviceList``.
        alive: whether there is a process, as far as the vmm knows.
        silent_ms: the time since its last message.
        unanswered: how many requests of the vmm it has not answered.
        oldest_ms: the time since the first of these was sent.
        transport: what the driver has set up, without the queues; nil before it is plugged in.
        queues: every queue.
        words: what the device process itself reports; nil if it does not answer.
    """

    TYPE: ClassVar[int] = 85
    FIELDS: ClassVar[tuple[Check, ...]] = (
        text(MAX_NAME_CHARS),
        U32,
        text(16),
        boolean,
        U64,
        U32,
        U64,
        optional(_TRANSPORT),
        sequence(_QUEUE, _MAX_QUEUES),
        optional(_WORDS),
    )
    name: str
    pid: int
    state: str
    alive: bool
    silent_ms: int
    unanswered: int
    oldest_ms: int
    transport: TransportState | None
    queues: tuple[QueueDump, ...]
    words: DeviceWords | None


@fact
class DumpDevice:
    """Return the state of a device."""

    TYPE: ClassVar[int] = 29
    FIELDS: ClassVar[tuple[Check, ...]] = (text(MAX_NAME_CHARS),)
    ANSWER: ClassVar[type[Message]] = DeviceDump
    device: str
