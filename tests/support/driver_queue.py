# SPDX-License-Identifier: BSD-3-Clause
"""The driver's side of a split virtqueue, written from virtio 1.3 §2.7 and from nothing of ours.

Two levels: ``offer`` puts arbitrary descriptors before the device, sound or not; ``submit`` builds
a request out of bytes as a careful driver does, and ``collect`` takes what the device gave back.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, NamedTuple

from devices.virtio.backend import QueueActivation

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from devices.virtio.queue.chain import DescriptorChain
    from devices.virtio.queue.split_queue import SplitQueue
    from sys_util.guest_memory import GuestMemory

NEXT = 1
WRITE = 2
INDIRECT = 4

NO_INTERRUPT = 1
NO_NOTIFY = 1

# The small guest of the queue tests: two regions, rings and buffers in the lower one.
SIZE = 8
RAM_BYTES = 0x40000
HIGH = 0x1_0000_0000
DATA = 0x20000


class Desc(NamedTuple):
    addr: int
    len: int
    flags: int = 0
    next: int = 0

    def pack(self) -> bytes:
        return struct.pack("<QIHH", *self)


class Used(NamedTuple):
    id: int
    len: int


class Request(NamedTuple):
    """A request under way: where its device-writable bytes are, buffer by buffer."""

    head: int
    used_descs: tuple[int, ...]
    answers: tuple[tuple[int, int], ...]


def pop(queue: SplitQueue) -> DescriptorChain:
    """Take the next chain, which has to be there."""
    chain = queue.pop()
    assert chain is not None
    return chain


def align(value: int, alignment: int) -> int:
    return -(-value // alignment) * alignment


class DriverQueue:
    """Rings at ``base``; request buffers, and indirect tables, from ``heap`` on."""

    def __init__(
        self,
        memory: GuestMemory,
        size: int = SIZE,
        base: int = 0x1000,
        heap: int = 0x10000,
        *,
        event_idx: bool = False,
    ) -> None:
        self.memory = memory
        self.size = size
        self.event_idx = event_idx
        self.desc_table = align(base, 16)
        self.avail_ring = align(self.desc_table + 16 * size, 2)
        self.used_ring = align(self.avail_ring + 6 + 2 * size, 4)
        self._avail = memory.view(self.avail_ring, 6 + 2 * size).cast("H")
        self._used = memory.view(self.used_ring, 6 + 8 * size)
        self._heap_start = self._heap = heap
        self.avail_idx = 0
        self.last_used_idx = 0
        self._free = list(range(size))
        self.requests: dict[int, Request] = {}

    def activation(
        self, index: int = 0, kick_fd: int = -1, call_fd: int = -1, *, resume: bool = False
    ) -> QueueActivation:
        return QueueActivation(
            index,
            self.size,
            self.desc_table,
            self.avail_ring,
            self.used_ring,
            kick_fd,
            call_fd,
            resume,
        )

    # What the driver writes

    def write_descs(self, table: Mapping[int, Desc]) -> None:
        for index, desc in table.items():
            self.memory.write(self.desc_table + 16 * index, desc.pack())

    def offer(self, head: int, table: Mapping[int, Desc] | None = None) -> None:
        self.write_descs(table or {})
        self.stage(head)
        self.publish()

    def stage(self, head: int) -> None:
        """Write a ring entry that only ``publish`` shows to the device."""
        self._avail[2 + self.avail_idx % self.size] = head
        self.avail_idx = (self.avail_idx + 1) & 0xFFFF

    def publish(self) -> None:
        self._avail[1] = self.avail_idx

    def set_avail_idx(self, value: int) -> None:
        self._avail[1] = value & 0xFFFF

    def set_avail_flags(self, value: int) -> None:
        self._avail[0] = value

    def set_used_event(self, value: int) -> None:
        self._avail[2 + self.size] = value & 0xFFFF

    def submit(
        self, out: Sequence[bytes] = (), into: Sequence[int] = (), *, indirect: bool = False
    ) -> Request:
        """Make a chain of these device-readable bytes and device-writable lengths available."""
        descs: list[Desc] = []
        answers: list[tuple[int, int]] = []
        for data in out:
            at = self.allocate(len(data))
            self.memory.write(at, data)
            descs.append(Desc(at, len(data)))
        for length in into:
            at = self.allocate(length)
            self.memory.write(at, b"\xee" * length)
            descs.append(Desc(at, length, WRITE))
            answers.append((at, length))
        if indirect:
            at = self.write_table(descs)
            descs = [Desc(at, 16 * len(descs), INDIRECT)]
            linked, used = self._link(descs)
            linked = {used[0]: descs[0]}
        else:
            linked, used = self._link(descs)
        self.write_descs(linked)
        request = Request(used[0], used, tuple(answers))
        self.requests[request.head] = request
        self.stage(request.head)
        self.publish()
        return request

    def write_table(self, descs: Sequence[Desc], order: Sequence[int] | None = None) -> int:
        """Store an indirect table in which ``descs`` follow one another; return its address."""
        at = self.allocate(16 * len(descs))
        places = list(order or range(len(descs)))
        for number, (place, desc) in enumerate(zip(places, descs, strict=True)):
            last = number == len(descs) - 1
            linked = (
                desc if last else desc._replace(flags=desc.flags | NEXT, next=places[number + 1])
            )
            self.memory.write(at + 16 * place, linked.pack())
        return at

    def allocate(self, length: int) -> int:
        at = self._heap
        self._heap = align(at + length, 16)
        return at

    def _link(self, descs: Sequence[Desc]) -> tuple[dict[int, Desc], tuple[int, ...]]:
        used = tuple(self._free[: len(descs)])
        if len(used) < len(descs):
            raise IndexError("the driver is out of descriptors")
        del self._free[: len(descs)]
        linked = {
            index: desc._replace(flags=desc.flags | NEXT, next=used[number + 1])
            for number, (index, desc) in enumerate(zip(used[:-1], descs, strict=False))
        }
        linked[used[-1]] = descs[-1]
        return linked, used

    # What the driver reads

    @property
    def used_flags(self) -> int:
        return int.from_bytes(self._used[0:2], "little")

    @property
    def used_idx(self) -> int:
        return int.from_bytes(self._used[2:4], "little")

    @property
    def avail_event(self) -> int:
        return int.from_bytes(self._used[4 + 8 * self.size :], "little")

    def used_elem(self, position: int) -> Used:
        at = 4 + 8 * (position % self.size)
        return Used(*struct.unpack("<II", self._used[at : at + 8]))

    def take_used(self) -> list[Used]:
        """Return the used elements that are new since the last call."""
        taken = []
        while self.last_used_idx != self.used_idx:
            taken.append(self.used_elem(self.last_used_idx))
            self.last_used_idx = (self.last_used_idx + 1) & 0xFFFF
        return taken

    def collect(self) -> list[tuple[Request, int, bytes]]:
        """Finish what the device gave back: request, used length, all its writable bytes."""
        finished = []
        for used in self.take_used():
            request = self.requests.pop(used.id)
            self._free.extend(request.used_descs)
            data = b"".join(self.memory.read(at, length) for at, length in request.answers)
            finished.append((request, used.len, data))
        if not self.requests:
            self._heap = self._heap_start
        return finished

    def needs_kick(self, old_avail_idx: int) -> bool:
        """Return whether the device wants to hear of the chains since ``old_avail_idx``."""
        if not self.event_idx:
            return not self.used_flags & NO_NOTIFY
        new = self.avail_idx
        return (new - self.avail_event - 1) & 0xFFFF < (new - old_avail_idx) & 0xFFFF
