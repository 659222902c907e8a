# SPDX-License-Identifier: BSD-3-Clause
"""The device's side of a split virtqueue (virtio 1.3 §2.7).

A queue has three structures in guest memory: the descriptor table and the available ring, which the
driver writes, and the used ring, which the device writes. Whatever the driver wrote is read once,
checked, and then used from our copy.

Memory order: an index is read by ``load_acquire`` and published by ``store_release``, so that the
elements that it announces are read after it, and written before it. In two places a load has to
come after a store, which needs a full barrier (§2.7.7, §2.7.10): the driver's index is read again
after a kick was asked for, and whether the driver wants an interrupt is read after the used index
was published.
"""

from __future__ import annotations

from struct import Struct

from devices.virtio.backend import RingPosition
from devices.virtio.features import VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC
from devices.virtio.queue.chain import ChainError, DescriptorChain, Reader, Writer
from sys_util.errors import GuestAddressError, GuestError
from sys_util.guest_memory import NO_SPAN
from sys_util.linux import KEEPS_ORDER, full_barrier
from sys_util.typing import TYPE_CHECKING, Final, NamedTuple

if TYPE_CHECKING:
    from devices.virtio.backend import QueueActivation
    from sys_util.guest_memory import GuestMemory, Span

VIRTQ_DESC_F_NEXT: Final = 1
VIRTQ_DESC_F_WRITE: Final = 2
VIRTQ_DESC_F_INDIRECT: Final = 4
VIRTQ_AVAIL_F_NO_INTERRUPT: Final = 1
VIRTQ_USED_F_NO_NOTIFY: Final = 1

MAX_QUEUE_SIZE: Final = 32768  # §2.7

# A chain through an indirect table may not be longer than the queue (§2.7.5.3.1), but Linux only
# counts the one descriptor that points to the table. So such a chain gets what preadv(2) takes.
MAX_INDIRECT_CHAIN: Final = 1024

MAX_CHAIN_BYTES: Final = 1 << 32  # §2.7.5.2

# struct virtq_desc: addr, len, flags, next. Native order is little-endian on all our hosts, and
# unlike "<" reads each field with one load.
_DESC: Final = Struct("QIHH")
_DESC_BYTES: Final = 16
_UNPACK_DESC: Final = _DESC.unpack_from

# Positions in 16-bit words, the same in both rings.
_FLAGS: Final = 0
_IDX: Final = 1
_RING: Final = 2

_U32_MAX: Final = 0xFFFF_FFFF


def load_acquire(words: memoryview, at: int) -> int:
    """Return a 16-bit word that the driver writes; later reads happen after this one."""
    value: int = words[at]
    if not KEEPS_ORDER:
        full_barrier()
    return value


def store_release(words: memoryview, at: int, value: int) -> None:
    """Store a 16-bit word that the driver reads, after everything that was written before it."""
    if not KEEPS_ORDER:
        full_barrier()
    words[at] = value


class QueueError(GuestError):
    """The queue itself is unusable: the device needs a reset (§2.1.2)."""


class QueueState(NamedTuple):
    """The position of a queue: free-running 16-bit indices, equal when nothing is in flight."""

    next_avail: int
    next_used: int


class Handover(NamedTuple):
    """The position that Python and the engine give each other when the server of a queue changes.

    Every used element is published. ``avail_idx``: the driver's index as it was last read and
    checked. ``signalled``: the used index when ``wants_interrupt`` was last asked.
    ``must_signal``: its next answer is yes.
    """

    next_avail: int
    avail_idx: int
    next_used: int
    signalled: int
    must_signal: bool


class SplitQueue:
    """An activated split virtqueue. Not thread-safe: one device process owns it.

    Used elements become visible to the driver with ``publish``, so that a batch costs one store of
    the index and at most one interrupt.
    """

    def __init__(self, memory: GuestMemory, layout: QueueActivation, features: int) -> None:
        """Map the three parts of the queue once, so that later accesses cannot leave them.

        Raises:
            QueueError: the size or an alignment is wrong, or a part lies outside guest memory.
        """
        size = layout.size
        if not 0 < size <= MAX_QUEUE_SIZE or size & (size - 1):
            raise QueueError(f"queue size {size} is not a power of two in 1..{MAX_QUEUE_SIZE}")
        desc = _map_part(memory, "descriptor table", layout.desc_table, _DESC_BYTES * size, 16)
        avail = _map_part(memory, "available ring", layout.avail_ring, 6 + 2 * size, 2)
        used = _map_part(memory, "used ring", layout.used_ring, 6 + 8 * size, 4)
        self.size = size
        self._mask = size - 1
        self._memory = memory
        span = memory.span(layout.desc_table, _DESC_BYTES * size)
        self._span = span if span.lasts else NO_SPAN
        self._desc_table = desc
        self._avail = avail.cast("H")
        # Indices and flags are stored through an "H" view, by one 16-bit store: struct.pack_into()
        # zeroes the field first, so that a polling driver would see idx jump to 0. In the same way
        # elements are stored through a "Q" view.
        self._used = used[:4].cast("H")
        self._used_elems = used[4 : 4 + 8 * size].cast("Q")
        self._avail_event = used[4 + 8 * size :].cast("H")
        self._event_idx = bool(features >> VIRTIO_RING_F_EVENT_IDX & 1)
        self._indirect = bool(features >> VIRTIO_RING_F_INDIRECT_DESC & 1)
        # Chains are finished in the order in which they were taken, so the used index says which of
        # them an earlier process served.
        start = self._used[_IDX] if layout.resume else 0
        self._next_avail = start
        self._avail_idx = start  # the driver's index as last read
        self._next_used = start
        self._published = start
        self._signalled = start  # the used index when ``wants_interrupt`` was last asked
        # Whether something else asks for the next turn, such as a kick of the driver. If not, the
        # device has to look again by itself.
        self.idle = False
        self.withheld = False  # whether ``publish`` does nothing
        # An earlier process may have published without an interrupt, so the first answer is yes.
        self._must_signal = layout.resume

    def state(self) -> QueueState:
        """Return the position of the queue."""
        return QueueState(self._next_avail, self._next_used)

    def position(self) -> RingPosition:
        """Return all that is known of the position, for ``crosvm debug dump``."""
        return RingPosition(
            self._avail_idx,
            self._next_avail,
            self._next_used,
            self._published,
            self._signalled,
            self.idle,
        )

    def handover(self) -> Handover:
        """Return the position for the engine; everything must be published."""
        return Handover(
            *(self._next_avail, self._avail_idx, self._next_used),
            *(self._signalled, self._must_signal),
        )

    def go_on(self, position: Handover) -> None:
        """Go on where the engine has stopped."""
        self._next_avail, self._avail_idx, self._next_used = position[:3]
        self._signalled, self._must_signal = position[3:]
        self._published = self._next_used
        self.idle = False

    def pop(self) -> DescriptorChain | None:
        """Consume the next available chain, or return ``None`` when the driver offered no more.

        Raises:
            QueueError: the available ring itself makes no sense.
            ChainError: this chain is malformed; the ones after it are still good.
        """
        next_avail = self._next_avail
        if next_avail == self._avail_idx:
            avail_idx = load_acquire(self._avail, _IDX)
            if avail_idx == next_avail:
                return None
            self._accept(avail_idx)
        head = self._avail[_RING + (next_avail & self._mask)]
        if head >= self.size:  # no such chain, so there is nothing to give back
            raise QueueError(f"head {head} outside a table of {self.size}")
        self._next_avail = (next_avail + 1) & 0xFFFF
        return self._walk(head)

    def unpop(self, *, idle: bool = False) -> None:
        """Undo the last ``pop``: the next one reads that chain again and returns it."""
        self._next_avail = (self._next_avail - 1) & 0xFFFF
        self.idle = idle

    def add_used(self, head: int, written: int) -> None:
        """Give a chain back. ``written`` never exceeds the bytes really stored (§2.7.8.2)."""
        next_used = self._next_used
        if written > _U32_MAX:
            written = _U32_MAX  # exactly 4 GiB was written, which the field cannot hold
        self._used_elems[next_used & self._mask] = written << 32 | head
        self._next_used = (next_used + 1) & 0xFFFF

    def publish(self) -> None:
        """Show the driver every chain given back so far, unless that is withheld."""
        if self._published != self._next_used and not self.withheld:
            self._published = self._next_used
            store_release(self._used, _IDX, self._next_used)

    def disable_notification(self) -> None:
        """Tell the driver that it need not kick, as we look at the ring anyway; it still may."""
        self.idle = False
        if not self._event_idx:
            self._used[_FLAGS] = VIRTQ_USED_F_NO_NOTIFY

    def enable_notification(self) -> bool:
        """Publish, and ask for a kick; return whether chains came before the driver knew of it.

        Raises:
            QueueError: the available index makes no sense.
        """
        if self._published != self._next_used and not self.withheld:
            self._published = self._next_used
            store_release(self._used, _IDX, self._next_used)
        if self._event_idx:
            self._avail_event[0] = self._next_avail
        else:
            self._used[_FLAGS] = 0
        full_barrier()
        if self._next_avail == self._avail_idx:
            avail_idx = load_acquire(self._avail, _IDX)
            if avail_idx == self._next_avail:
                self.idle = True
                return False
            self._accept(avail_idx)
        self.idle = False
        return True

    def wants_interrupt(self) -> bool:
        """Return whether the driver wants an interrupt for what was published since last asked."""
        old, new = self._signalled, self._published
        if self._must_signal:
            self._must_signal = False
            self._signalled = new
            return True
        if old == new:
            return False
        full_barrier()
        self._signalled = new
        if self._event_idx:
            used_event = self._avail[_RING + self.size]
            return (new - used_event - 1) & 0xFFFF < (new - old) & 0xFFFF
        return not self._avail[_FLAGS] & VIRTQ_AVAIL_F_NO_INTERRUPT

    def _accept(self, avail_idx: int) -> None:
        """Take the driver's index if it is possible."""
        pending = (avail_idx - self._next_avail) & 0xFFFF
        if pending > self.size:
            raise QueueError(f"avail idx {avail_idx} is {pending} ahead of a queue of {self.size}")
        self._avail_idx = avail_idx

    def _walk(self, head: int) -> DescriptorChain:
        """Follow the chain at ``head``. Read a bounded number of descriptors, each of them once."""
        readable: list[memoryview] = []
        writable: list[memoryview] = []
        readable_bytes = writable_bytes = 0
        writing = False
        table, at, count, left = self._desc_table, head, self.size, self.size
        start, end, base, _ = self._span
        while True:
            if at >= count or not left:
                raise _broken_walk(head, at, count)
            left -= 1
            addr, length, flags, at_next = _UNPACK_DESC(table, at * _DESC_BYTES)
            if flags & VIRTQ_DESC_F_INDIRECT:
                table = self._enter_table(head, addr, length, flags, table)
                at, count, left = 0, length // _DESC_BYTES, max(self.size, MAX_INDIRECT_CHAIN)
                continue
            if flags & VIRTQ_DESC_F_WRITE:
                writing = True
                writable_bytes += length
            elif writing:
                raise ChainError(head, "device-readable descriptor after a device-writable one")
            else:
                readable_bytes += length
            if length:
                if addr < start or addr + length > end:
                    start, end, base, _ = self._find(head, addr, length)
                offset = addr - start
                (writable if writing else readable).append(base[offset : offset + length])
            if not flags & VIRTQ_DESC_F_NEXT:
                break
            at = at_next
        if readable_bytes + writable_bytes > MAX_CHAIN_BYTES:
            raise ChainError(head, f"{readable_bytes + writable_bytes:#x} bytes in one chain")
        return DescriptorChain(
            head, Reader(head, readable, readable_bytes), Writer(head, writable, writable_bytes)
        )

    def _enter_table(
        self, head: int, addr: int, length: int, flags: int, table: memoryview
    ) -> memoryview:
        """Return the indirect table that a descriptor points to (§2.7.5.3)."""
        if not self._indirect:
            raise ChainError(head, "indirect descriptor, which was not negotiated")
        if table is not self._desc_table:
            raise ChainError(head, "indirect descriptor in an indirect table")
        if flags & VIRTQ_DESC_F_NEXT:
            raise ChainError(head, "indirect descriptor with a next one")
        if not length or length % _DESC_BYTES:
            raise ChainError(head, f"indirect table of {length} bytes is not whole descriptors")
        if length > _DESC_BYTES * MAX_QUEUE_SIZE:
            raise ChainError(head, f"indirect table of {length // _DESC_BYTES} descriptors")
        start, _, base, _ = self._find(head, addr, length)
        return base[addr - start : addr - start + length]

    def _find(self, head: int, addr: int, length: int) -> Span:
        """Return the region of a buffer, and keep it for the next one, which is often there too.

        Memory that may go away is looked for each time.
        """
        try:
            span = self._memory.span(addr, length)
        except GuestAddressError as error:
            raise ChainError(head, str(error)) from error
        if span.lasts:
            self._span = span
        return span


def _map_part(memory: GuestMemory, name: str, gpa: int, length: int, alignment: int) -> memoryview:
    """Return one of the three parts of a queue, after the checks of §2.7."""
    if gpa % alignment:
        raise QueueError(f"{name} at {gpa:#x} is not {alignment}-byte aligned")
    try:
        return memory.view(gpa, length)
    except GuestAddressError as error:
        raise QueueError(f"{name}: {error}") from error


def _broken_walk(head: int, at: int, count: int) -> ChainError:
    """Return why a walk cannot go on at descriptor ``at`` of ``count``."""
    if at >= count:
        return ChainError(head, f"descriptor {at} outside a table of {count}")
    return ChainError(head, "descriptor loop, or a chain longer than allowed")
