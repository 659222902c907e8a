# SPDX-License-Identifier: BSD-3-Clause
"""virtio-mem: memory that the guest plugs and unplugs in blocks (virtio 1.3 §5.15).

Queues:      0 guest-request
Features:    UNPLUGGED_INACCESSIBLE, which the driver has to accept to get any memory
Config:      block_size, node_id, addr, region_size, usable_region_size, plugged_size,
             requested_size
Kept fds:    guest memory alone

The vmm decides: it checks each request again, gives the memory to the guest or takes it, and writes
the table of blocks, which says what is plugged. This process makes a hole where a block has gone,
so that the host has its memory back. A request that was sent to the vmm is saved: the next process,
which finds it again in the queue, need not have it carried out twice.
"""

from __future__ import annotations

from struct import Struct

from devices.virtio import commands
from devices.virtio.commands import SetRequested
from devices.virtio.device import CommandError, SimpleDevice
from devices.virtio.mem.state import Pending, read_saved
from devices.virtio.queue.chain import ChainError
from devices.virtio.queue.servers import PortServer
from sys_util.facts import fact
from sys_util.linux import FALLOC_FL_KEEP_SIZE, FALLOC_FL_PUNCH_HOLE, fallocate
from sys_util.log import get_logger
from sys_util.typing import TYPE_CHECKING, ClassVar, Final
from sys_util.wire import U16, U64

if TYPE_CHECKING:
    from devices.virtio.commands import Command
    from devices.virtio.context import DeviceContext
    from devices.virtio.queue.chain import DescriptorChain
    from devices.virtio.queue.port import QueuePort
    from devices.virtio.queue.servers import QueueServer, StartedQueue
    from sys_util.hot_memory import HotArea
    from sys_util.wire import Check, Message

VIRTIO_MEM_F_UNPLUGGED_INACCESSIBLE: Final = 1

VIRTIO_MEM_REQ_PLUG: Final = 0
VIRTIO_MEM_REQ_UNPLUG: Final = 1
VIRTIO_MEM_REQ_UNPLUG_ALL: Final = 2
VIRTIO_MEM_REQ_STATE: Final = 3

VIRTIO_MEM_RESP_ACK: Final = 0
VIRTIO_MEM_RESP_NACK: Final = 1
VIRTIO_MEM_RESP_BUSY: Final = 2
VIRTIO_MEM_RESP_ERROR: Final = 3

VIRTIO_MEM_STATE_PLUGGED: Final = 0
VIRTIO_MEM_STATE_UNPLUGGED: Final = 1
VIRTIO_MEM_STATE_MIXED: Final = 2

QUEUE_SIZE: Final = 128

# One turn of serving; after it other messages of the vmm are served.
MAX_CHAINS_PER_TURN: Final = 64

_CONFIG: Final = Struct("<QH6xQQQQQ")
_REQUEST: Final = Struct("<H6xQH6x")  # type, addr, nb_blocks
_RESPONSE: Final = Struct("<H6xH")  # type, state
_MODE: Final = FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE


@fact
class MemSpec:
    """How much the guest is asked to plug at the start, and the NUMA node of the memory."""

    TYPE: ClassVar[int] = 9
    FIELDS: ClassVar[tuple[Check, ...]] = (U64, U16)
    requested_bytes: int = 0
    node: int = 0


class Mem(SimpleDevice):
    """Ask the guest to plug memory or to unplug it, and carry out what it asks for."""

    name: ClassVar[str] = "virtio-mem"
    device_type: ClassVar[int] = 24
    queue_sizes: ClassVar[tuple[int, ...]] = (QUEUE_SIZE,)
    seccomp_policy: ClassVar[str] = "mem_device"
    in_order: ClassVar[bool] = True

    _context: DeviceContext
    _area: HotArea

    def __init__(self, spec: MemSpec) -> None:
        self._spec = spec
        self._requested = spec.requested_bytes
        self._may_plug = False
        self._log = get_logger("devices.virtio.mem").limited()
        # What the vmm was asked for last. It is saved until the driver has seen the response, which
        # is certain when the next request can be taken.
        self._pending: Pending | None = None
        self._answered = False
        self._waiting: tuple[QueuePort, DescriptorChain] | None = None  # for that answer

    def features(self) -> int:
        return 1 << VIRTIO_MEM_F_UNPLUGGED_INACCESSIBLE

    def config(self) -> bytes:
        area = self._area
        size = area.end - area.start
        return _CONFIG.pack(
            *(area.block_bytes, self._spec.node, area.start, size, size),
            *(self._plugged_bytes, self._requested),
        )

    def write_config(self, offset: int, data: bytes) -> None:
        """Ignore it: no field is the driver's."""

    @property
    def _plugged_bytes(self) -> int:
        return sum(end - first for first, end in self._area.runs()) * self._area.block_bytes

    def attach(self, context: DeviceContext) -> None:
        self._context = context
        (self._area,) = context.memory.hot_areas
        context.saved.restore(self._take_up)
        self._release_unplugged()  # a process that was killed may not have done it

    def _take_up(self, fields: dict[str, object]) -> None:
        area = self._area
        self._requested, self._pending = read_saved(
            fields, area.blocks.nbytes, area.block_bytes, VIRTIO_MEM_REQ_UNPLUG_ALL
        )

    def _save(self) -> None:
        self._context.saved.store(
            {"requested": self._requested, "pending": list(self._pending or ())}
        )

    def activate(self, features: int) -> None:
        self._may_plug = bool(features >> VIRTIO_MEM_F_UNPLUGGED_INACCESSIBLE & 1)

    def reset(self) -> None:
        """Forget the driver. What is plugged stays so (§5.15.5); the vmm may have taken all."""
        self._may_plug = False
        self._waiting = self._pending = None
        self._answered = False
        self._save()
        self._release_unplugged()

    def make_server(self, queue: StartedQueue) -> QueueServer:
        return PortServer(queue, self._serve_queue)

    def pause(self) -> None:
        """Put a request back that waits for the vmm; it is taken up again after the pause."""
        waiting, self._waiting = self._waiting, None
        if waiting is not None:
            port, chain = waiting
            port.put_back(chain)

    def _serve_queue(self, index: int) -> bool:
        port = self._context.port(index)
        if port is None or self._waiting is not None:
            return False
        for _ in range(MAX_CHAINS_PER_TURN):
            chain = port.take()
            if chain is None:
                return port.wait()
            try:
                response = self._serve(chain)
            except ChainError as error:
                self._context.counters.count_error()
                self._log.warning("%s queue %d: %s", self.name, index, error)
                port.give_back(chain)
                continue
            if response is None:
                self._waiting = port, chain
                port.flush()
                return False
            chain.writer.write(response)
            port.give_back(chain)
        port.flush()
        return True

    def _serve(self, chain: DescriptorChain) -> bytes | None:
        """Return the response to a request, or ``None`` once the vmm was asked for it."""
        if chain.writer.remaining < _RESPONSE.size:
            raise ChainError(chain.head, "no room for the response (§5.15.6)")
        kind, addr, count = chain.reader.unpack(_REQUEST)
        last, self._pending = self._pending, None
        if self._answered:
            last, self._answered = None, False
            self._save()
        if kind == VIRTIO_MEM_REQ_UNPLUG_ALL:
            change = Pending(kind, 0, self._area.blocks.nbytes)
        else:
            first = self._block(addr, count)
            if first is None:
                return _response(VIRTIO_MEM_RESP_ERROR)
            change = Pending(kind, first, count)
        if kind == VIRTIO_MEM_REQ_STATE:
            return self._state(change)
        if last == change and self._is_done(change):  # an earlier process asked for it
            self._pending = change
            return self._finished(change)
        refusal = self._refusal(change)
        if refusal != VIRTIO_MEM_RESP_ACK:
            return _response(refusal)
        self._pending = change
        self._save()
        self._context.change_blocks(*change, self._on_answer)
        return None

    def _block(self, addr: int, count: int) -> int | None:
        """Return the number of the first block of a range, ``None`` if there is none."""
        area = self._area
        first, rest = divmod(addr - area.start, area.block_bytes)
        if rest or first < 0 or not count or first + count > area.blocks.nbytes:
            return None
        return first

    def _there(self, change: Pending) -> set[bool]:
        """Return whether there are plugged blocks in a range, and whether there are others."""
        return {bool(block) for block in self._area.blocks[change.first : change.end]}

    def _is_done(self, change: Pending) -> bool:
        return self._there(change) == {change.kind == VIRTIO_MEM_REQ_PLUG}

    def _refusal(self, change: Pending) -> int:
        """Return why a change cannot be, as a type of response; ACK if it can."""
        if change.kind == VIRTIO_MEM_REQ_UNPLUG_ALL:
            return VIRTIO_MEM_RESP_ACK
        if change.kind not in (VIRTIO_MEM_REQ_PLUG, VIRTIO_MEM_REQ_UNPLUG):
            return VIRTIO_MEM_RESP_ERROR
        if self._there(change) != {change.kind == VIRTIO_MEM_REQ_UNPLUG}:
            return VIRTIO_MEM_RESP_ERROR
        more = change.blocks * self._area.block_bytes
        if change.kind == VIRTIO_MEM_REQ_PLUG and (
            not self._may_plug or self._plugged_bytes + more > self._requested
        ):
            return VIRTIO_MEM_RESP_NACK
        return VIRTIO_MEM_RESP_ACK

    def _state(self, change: Pending) -> bytes:
        there = self._there(change)
        state = VIRTIO_MEM_STATE_MIXED
        if len(there) == 1:
            state = VIRTIO_MEM_STATE_PLUGGED if True in there else VIRTIO_MEM_STATE_UNPLUGGED
        return _response(VIRTIO_MEM_RESP_ACK, state)

    def _on_answer(self, done: bool) -> None:
        """Answer the request that waits for the vmm, unless it was put back meanwhile."""
        waiting, self._waiting = self._waiting, None
        change = self._pending
        if waiting is None or change is None:
            return
        port, chain = waiting
        response = self._finished(change) if done else _response(VIRTIO_MEM_RESP_BUSY)
        self._answered = True
        chain.writer.write(response)
        port.give_back(chain)
        self._context.config_changed(by_driver=True)  # before the driver sees the answer
        port.flush()
        self._context.serve_again()

    def _finished(self, change: Pending) -> bytes:
        self._answered = True
        if change.kind != VIRTIO_MEM_REQ_PLUG:
            self._release(change.first, change.blocks)
        return _response(VIRTIO_MEM_RESP_ACK)

    def _release_unplugged(self) -> None:
        """Give the host all memory that is not plugged."""
        at = 0
        for first, end in (*self._area.runs(), (self._area.blocks.nbytes, 0)):
            if first > at:
                self._release(at, first - at)
            at = end

    def _release(self, first: int, count: int) -> None:
        area = self._area
        offset = area.file_offset + first * area.block_bytes
        try:
            fallocate(self._context.memory.fd, _MODE, offset, count * area.block_bytes)
        except OSError as error:  # the host keeps the memory, which is all
            self._log.warning("%s: give memory back: %s", self.name, error.strerror)

    def command(self, command: Command) -> Message:
        if not isinstance(command, SetRequested):
            raise CommandError(f"{self.name} devices know no {command.WORD}")
        if command.size_bytes > self._area.end - self._area.start:
            raise CommandError(f"{command.size_bytes:#x} bytes are more than there can be")
        if self._requested != command.size_bytes:
            self._requested = command.size_bytes
            self._save()
            self._context.config_changed()
        return commands.Obeyed()


def _response(kind: int, state: int = 0) -> bytes:
    return _RESPONSE.pack(kind, state)
