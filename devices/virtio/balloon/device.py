# SPDX-License-Identifier: BSD-3-Clause
"""virtio-balloon: the guest gives memory that it does not need to the host (virtio 1.3 §5.5).

Queues:      0 inflateq, 1 deflateq, 2 statsq, 3 free_page_vq, 4 reporting_vq if the user wants it
Features:    MUST_TELL_HOST, STATS_VQ, FREE_PAGE_HINT, PAGE_POISON; DEFLATE_ON_OOM and
             REPORTING if the user wants them
Config:      num_pages, actual, free_page_hint_cmd_id, poison_val
Kept fds:    guest memory alone

Inflated and reported pages are given back to the host at once. Hinted pages are only counted: a
driver short of memory may use such a page again before the device sees the hint, so that giving it
back could destroy data.
"""

from __future__ import annotations

from struct import Struct

from devices.virtio import commands
from devices.virtio.balloon.memory import PAGE_SHIFT, GuestPages
from devices.virtio.balloon.state import (
    FIRST_CMD_ID,
    MOST,
    NOT_HELD,
    U32_MAX,
    VIRTIO_BALLOON_CMD_ID_STOP,
    BalloonState,
    read_released,
    read_saved_stats,
    read_state,
)
from devices.virtio.balloon.stats import read_stats
from devices.virtio.commands import AdjustTarget, SetTarget, TellState
from devices.virtio.device import CommandError, SimpleDevice
from devices.virtio.queue.chain import ChainError
from devices.virtio.queue.servers import ChainServer, PortServer
from sys_util.facts import fact
from sys_util.log import get_logger
from sys_util.typing import TYPE_CHECKING, ClassVar, Final
from sys_util.wire import U64, boolean

if TYPE_CHECKING:
    from devices.virtio.commands import Command
    from devices.virtio.context import DeviceContext
    from devices.virtio.queue.chain import DescriptorChain
    from devices.virtio.queue.port import QueuePort
    from devices.virtio.queue.servers import QueueServer, StartedQueue
    from sys_util.wire import Check, Message

VIRTIO_BALLOON_F_MUST_TELL_HOST: Final = 0
VIRTIO_BALLOON_F_STATS_VQ: Final = 1
VIRTIO_BALLOON_F_DEFLATE_ON_OOM: Final = 2
VIRTIO_BALLOON_F_FREE_PAGE_HINT: Final = 3
VIRTIO_BALLOON_F_PAGE_POISON: Final = 4
VIRTIO_BALLOON_F_REPORTING: Final = 5

VIRTIO_BALLOON_CMD_ID_DONE: Final = 1

QUEUE_SIZE: Final = 128

# Counters that only a balloon has; crosvm_py/kinds/balloon.py has their names.
_PAGES_INFLATED: Final = 0
_PAGES_DEFLATED: Final = 1
_BYTES_REPORTED: Final = 2

# A chain may name a billion pages; drivers send 256 to 1024. The rest of a longer list is not given
# back: that costs the host memory and the guest nothing.
MAX_PAGES_PER_CHAIN: Final = 16384

# The driver keeps hinted pages unused until the round ends, so a round ends after this time.
HINT_SECONDS: Final = 10.0

# One turn of serving; after it other queues and messages of the vmm are served.
MAX_CHAINS_PER_TURN: Final = 64

_CONFIG: Final = Struct("<IIII")
_FIELD: Final = Struct("<I")
_ACTUAL_OFFSET: Final = 4
_POISON_OFFSET: Final = 12


INFLATE_QUEUE: Final = 0
DEFLATE_QUEUE: Final = 1
STATS_QUEUE: Final = 2
FREE_PAGE_QUEUE: Final = 3
REPORTING_QUEUE: Final = 4

# The queues that exist only with a feature, in their order.
_OPTIONAL_QUEUES: Final = (
    (VIRTIO_BALLOON_F_STATS_VQ, STATS_QUEUE),
    (VIRTIO_BALLOON_F_FREE_PAGE_HINT, FREE_PAGE_QUEUE),
    (VIRTIO_BALLOON_F_REPORTING, REPORTING_QUEUE),
)


@fact
class BalloonSpec:
    """What the user asked for: the balloon's size at the start, and what the guest may do."""

    TYPE: ClassVar[int] = 5
    FIELDS: ClassVar[tuple[Check, ...]] = (U64, boolean, boolean)
    size_bytes: int = 0
    deflate_on_oom: bool = True
    page_reporting: bool = False


class Balloon(SimpleDevice):
    """Ask the guest for pages and give them back to the host."""

    name: ClassVar[str] = "balloon"
    device_type: ClassVar[int] = 5
    seccomp_policy: ClassVar[str] = "balloon_device"
    in_order: ClassVar[bool] = True
    gate: ClassVar[None] = None  # nothing makes the driver's pages wait

    def __init__(self, spec: BalloonSpec) -> None:
        count = REPORTING_QUEUE + spec.page_reporting
        self.queue_sizes = (QUEUE_SIZE,) * count
        self._spec = spec
        self._state = BalloonState(spec.size_bytes >> PAGE_SHIFT)
        self._log = get_logger("devices.virtio.balloon").limited()
        self._features = 0
        self._stats: dict[int, int] = {}
        self._held: tuple[QueuePort, DescriptorChain] | None = None  # the buffer on statsq

    def features(self) -> int:
        bits = [
            VIRTIO_BALLOON_F_MUST_TELL_HOST,
            VIRTIO_BALLOON_F_STATS_VQ,
            VIRTIO_BALLOON_F_FREE_PAGE_HINT,
            VIRTIO_BALLOON_F_PAGE_POISON,
        ]
        if self._spec.deflate_on_oom:
            bits.append(VIRTIO_BALLOON_F_DEFLATE_ON_OOM)
        if self._spec.page_reporting:
            bits.append(VIRTIO_BALLOON_F_REPORTING)
        return sum(1 << bit for bit in bits)

    def config(self) -> bytes:
        state = self._state
        return _CONFIG.pack(state.target_pages, state.actual_pages, state.cmd_id, state.poison)

    def write_config(self, offset: int, data: bytes) -> None:
        """Take ``actual`` and ``poison_val``, written as a whole; ignore any other write."""
        if len(data) != _FIELD.size:
            return
        (value,) = _FIELD.unpack(data)
        if offset == _ACTUAL_OFFSET:
            self._change(actual_pages=value)
        elif offset == _POISON_OFFSET:
            self._change(poison=value)

    def attach(self, context: DeviceContext) -> None:
        self._context = context
        self._pages = GuestPages(context.memory)
        target = min(self._state.target_pages, self._pages.page_count)
        self._state = self._state._replace(target_pages=target)
        context.saved.restore(self._restore)
        self._save()
        if self._state.cmd_id >= FIRST_CMD_ID:
            self._limit_hinting()

    def _restore(self, fields: dict[str, object]) -> None:
        """Take up what the last process saved; see ``SavedState.restore``."""
        stats, released = read_saved_stats(fields), read_released(fields)
        self._state = read_state(fields, self._pages.page_count)
        self._stats, self._pages.released_bytes = stats, released

    def _save(self) -> None:
        """Store what a restarted process has to know."""
        fields: dict[str, object] = {
            "state": self._state,
            "stats": list(self._stats.items()),
            "released": min(self._pages.released_bytes, MOST),
        }
        self._context.saved.store(fields)

    def _change(self, **fields: int) -> None:
        self._state = self._state._replace(**fields)
        self._save()

    def activate(self, features: int) -> None:
        self._features = features

    def reset(self) -> None:
        self._features = 0
        self._stats = {}
        self._held = None
        self._state = self._state.without_driver()
        self._save()

    def make_server(self, queue: StartedQueue) -> QueueServer:
        if queue.number in (INFLATE_QUEUE, DEFLATE_QUEUE):
            return ChainServer(queue, self)
        return PortServer(queue, self._serve)

    # The driver's pages.

    def handle_chain(self, queue_index: int, chain: DescriptorChain) -> None:
        if queue_index == INFLATE_QUEUE:
            self._inflate(chain)
            return
        # Deflated pages need no work: when the guest touches such a page, it gets a new one.
        self._context.counters.add(_PAGES_DEFLATED, chain.reader.remaining // _FIELD.size)

    def _inflate(self, chain: DescriptorChain) -> None:
        count = min(chain.reader.remaining // _FIELD.size, MAX_PAGES_PER_CHAIN)
        numbers = memoryview(chain.reader.read(count * _FIELD.size)).cast("I")
        try:
            outside = self._pages.release_numbers(numbers)
        except OSError as error:
            self._log.warning("the host takes no pages back: %s", error.strerror)
            return
        self._save()
        self._context.counters.add(_PAGES_INFLATED, count)
        if outside or chain.reader.remaining:
            raise ChainError(
                chain.head,
                f"{outside} pages are no guest memory, {chain.reader.remaining} bytes left over",
            )

    def _serve(self, index: int) -> bool:
        port = self._context.port(index)
        if port is None:
            return False
        role = self._roles().get(index)
        for _ in range(MAX_CHAINS_PER_TURN):
            chain = port.take()
            if chain is None:
                if port.wait():
                    continue
                self._save()
                return False
            if role == STATS_QUEUE:
                self._take_stats(port, chain)
                continue
            try:
                self._take_free_pages(role, chain)
            except ChainError as error:
                self._context.counters.count_error()
                self._log.warning("queue %d: %s", index, error)
            port.give_back(chain)
        port.flush()
        self._save()
        return True

    def _roles(self) -> dict[int, int]:
        """Return the role of each optional queue, by its index.

        The specification gives each of them a fixed index. Linux leaves no gap where a feature was
        not negotiated, as QEMU's devices expect. Either way one queue is enabled for each feature.
        """
        wanted = [queue for bit, queue in _OPTIONAL_QUEUES if self._features >> bit & 1]
        active = [i for _, i in _OPTIONAL_QUEUES if self._context.port(i) is not None]
        if len(active) != len(wanted):
            return {queue: queue for queue in wanted}
        return dict(zip(active, wanted, strict=True))

    def _take_free_pages(self, role: int | None, chain: DescriptorChain) -> None:
        if role == REPORTING_QUEUE:
            self._take_report(chain)
        elif role == FREE_PAGE_QUEUE:
            self._take_hint(chain)
        else:
            raise ChainError(chain.head, "a queue without its feature")

    def _take_report(self, chain: DescriptorChain) -> None:
        if chain.reader.remaining:
            raise ChainError(chain.head, "device-readable buffer on reporting_vq (§5.5.6.7)")
        self._context.counters.add(_BYTES_REPORTED, chain.writer.remaining)
        # A page that was given back reads as zeros, but this driver wants to find its poison there.
        if self._features >> VIRTIO_BALLOON_F_PAGE_POISON & 1 and self._state.poison:
            return
        try:
            self._pages.release_views(chain.writer.iovecs(chain.writer.remaining))
        except OSError as error:
            self._log.warning("the host takes no pages back: %s", error.strerror)

    def _take_hint(self, chain: DescriptorChain) -> None:
        """Handle a buffer of a round of hints: command id, free pages, STOP (§5.5.6.6)."""
        state = self._state
        if chain.reader.remaining:
            (cmd_id,) = chain.reader.unpack(_FIELD)
            ours = cmd_id == state.cmd_id >= FIRST_CMD_ID
            if ours and not state.hinting:
                self._change(hinting=1, hinted_bytes=0)
            elif cmd_id == VIRTIO_BALLOON_CMD_ID_STOP and state.hinting:
                self._end_hinting(state.cmd_id)
        elif state.hinting:
            hinted_bytes = min(state.hinted_bytes + chain.writer.remaining, MOST)
            self._state = state._replace(hinted_bytes=hinted_bytes)

    # Statistics. The device keeps the driver's one buffer, and gives it back to get new ones.

    def _take_stats(self, port: QueuePort, chain: DescriptorChain) -> None:
        self._return_stats()
        self._stats = read_stats(chain.reader)
        self._held = (port, chain)
        if not port.resumed or self._state.held != port.last_taken:  # else the last process did
            self._change(updates=self._state.updates + 1, held=port.last_taken)

    def _return_stats(self) -> None:
        if self._held is None:
            return
        (port, chain), self._held = self._held, None
        port.give_back(chain)  # a stopped queue ignores this
        port.flush()
        self._change(held=NOT_HELD)

    # What the user asks for.

    def command(self, command: Command) -> Message:
        match command:
            case SetTarget(pages):
                return self._set_target(pages)
            case AdjustTarget(pages):
                return self._set_target(self._state.target_pages + pages)
            case TellState(refresh, hint):
                state = self._describe()
                if hint:
                    self._start_hinting()
                if refresh and self._held is not None and not self._held[0].paused:
                    self._return_stats()
                return state
        return super().command(command)

    def _set_target(self, pages: int) -> commands.BalloonState:
        target = max(0, min(pages, self._pages.page_count))
        if target != self._state.target_pages:
            self._change(target_pages=target)
            self._context.config_changed()
        return self._describe(clamped=target != pages)

    def _start_hinting(self) -> None:
        if not self._features >> VIRTIO_BALLOON_F_FREE_PAGE_HINT & 1:
            raise CommandError("the guest's driver knows no free page hints")
        if self._state.cmd_id < FIRST_CMD_ID:  # else a round is under way already
            cmd_id = max(FIRST_CMD_ID, (self._state.last_cmd_id + 1) & U32_MAX)
            self._change(last_cmd_id=cmd_id, cmd_id=cmd_id)
            self._context.config_changed()
            self._limit_hinting()

    def _limit_hinting(self) -> None:
        cmd_id = self._state.cmd_id
        self._context.call_later(HINT_SECONDS, lambda: self._end_hinting(cmd_id))

    def _end_hinting(self, cmd_id: int) -> None:
        """End this round of hints: the driver may use the hinted pages again."""
        if self._state.cmd_id == cmd_id:
            self._change(hinting=0, cmd_id=VIRTIO_BALLOON_CMD_ID_DONE)
            self._context.config_changed()

    def _describe(self, *, clamped: bool = False) -> commands.BalloonState:
        state = self._state
        return commands.BalloonState(
            target_pages=state.target_pages,
            actual_pages=state.actual_pages,
            released_bytes=self._pages.released_bytes,
            has_driver=bool(self._features),
            has_stats=bool(self._features >> VIRTIO_BALLOON_F_STATS_VQ & 1),
            updates=state.updates,
            stats=tuple(self._stats.items()),
            hint_done=state.cmd_id < FIRST_CMD_ID,
            hinted_bytes=state.hinted_bytes,
            clamped=clamped,
        )
