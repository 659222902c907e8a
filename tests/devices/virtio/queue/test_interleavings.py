# SPDX-License-Identifier: BSD-3-Clause
"""Driver and device in every order of their accesses: nobody waits for a wake-up that never comes.

The device is the real code of ``SplitQueue``, ``ChainServer`` and ``QueuePort``. The engine's turn
is written once more here, access by access as in engine/src/block.rs and ring.rs. The driver does
what Linux's virtio_ring.c does. Without any one of the four fences a wake-up is lost.
"""

from __future__ import annotations

from itertools import chain
from typing import TYPE_CHECKING, cast

import pytest

from devices.virtio.counters import Counters
from devices.virtio.device import SimpleDevice
from devices.virtio.features import VIRTIO_F_VERSION_1, VIRTIO_RING_F_EVENT_IDX
from devices.virtio.queue import port as port_module
from devices.virtio.queue import servers, split_queue
from devices.virtio.queue.port import QueuePort
from devices.virtio.queue.servers import ChainServer, StartedQueue
from devices.virtio.queue.split_queue import SplitQueue
from sys_util.guest_memory import GuestMemory
from sys_util.log import get_logger
from tests.support.driver_queue import DATA, WRITE, Desc, DriverQueue
from tests.support.interleaving import explore

if TYPE_CHECKING:
    from collections.abc import Iterator

    from devices.virtio.queue.chain import DescriptorChain
    from tests.support.interleaving import Accesses, Program

SIZE = 4
KICK, CALL = 101, 102  # stand for the two eventfds
DRIVER = 0
LOG = get_logger("test")

modes = pytest.mark.parametrize("event_idx", [False, True], ids=["flags", "event-idx"])


class Nothing(SimpleDevice):
    """Give every chain back as it is."""

    name = "nothing"
    gate = None

    def handle_chain(self, queue_index: int, chain: DescriptorChain) -> None: ...


class Words:
    """Some shared words; each access to one with a name is an access of the program."""

    def __init__(self, accesses: Accesses, names: dict[int, str]) -> None:
        self._accesses = accesses
        self._names = names

    def __getitem__(self, at: int) -> int:
        if at in self._names:
            return self._accesses("load", self._names[at])
        return (at - 2) % SIZE  # a head, written before the driver's index showed it

    def __setitem__(self, at: int, value: int) -> None:
        self._accesses("store", self._names[at], value)


class Rig:
    """Programs that share one queue. They are run one at a time, so each sets what it patches."""

    def __init__(self, memory: GuestMemory, patch: pytest.MonkeyPatch, *, event_idx: bool) -> None:
        self._patch = patch
        self._memory = memory
        self._event_idx = event_idx
        self.device_fences = {"enable", "wants"}
        self.driver_fences = {"kick", "sleep"}
        driver = DriverQueue(memory, SIZE, event_idx=event_idx)
        driver.write_descs({head: Desc(DATA, 8, WRITE) for head in range(SIZE)})
        self._activation = driver.activation(0, KICK, CALL)

    def _ring(self, accesses: Accesses) -> SplitQueue:
        """Return a queue whose accesses are those of the program."""
        features = 1 << VIRTIO_F_VERSION_1 | self._event_idx << VIRTIO_RING_F_EVENT_IDX
        ring = SplitQueue(self._memory, self._activation, features)
        avail = {0: "avail_flags", 1: "avail_idx", 2 + SIZE: "used_event"}
        ring._avail = cast("memoryview[int]", Words(accesses, avail))
        ring._used = cast("memoryview[int]", Words(accesses, {0: "used_flags", 1: "used_idx"}))
        ring._avail_event = cast("memoryview[int]", Words(accesses, {0: "avail_event"}))
        in_enable = [False]
        enable = ring.enable_notification

        def enable_notification() -> bool:
            in_enable[0] = True
            try:
                return enable()
            finally:
                in_enable[0] = False

        def fence() -> None:
            if ("enable" if in_enable[0] else "wants") in self.device_fences:
                accesses("fence")

        def take(_fd: int) -> int:
            if not accesses("take", "kick"):
                raise BlockingIOError
            return 1

        def signal(_fd: int) -> None:
            accesses("signal", "call")

        self._patch.setattr(ring, "enable_notification", enable_notification)
        self._patch.setattr(split_queue, "full_barrier", fence)
        self._patch.setattr(servers, "eventfd_read", take)
        self._patch.setattr(servers, "signal_eventfd", signal)
        self._patch.setattr(port_module, "signal_eventfd", signal)
        return ring

    def chain_server(self, accesses: Accesses) -> None:
        """The loop of a device's process with the common server."""
        ring = self._ring(accesses)
        queue = StartedQueue("nothing", self._activation, 0, ring, self._memory, Counters(), LOG)
        server = ChainServer(queue, Nothing())
        more = True  # a queue that starts is served once without a kick
        while True:
            if not more:
                accesses("wait", "kick")
            server.take_kick()
            more = server.turn()

    def port(self, accesses: Accesses) -> None:
        """A device that serves the queue itself: give back all there is, then wait for a kick."""
        port = QueuePort("test", 0, self._ring(accesses), CALL, Counters(), LOG)
        while True:
            while True:
                while (chain := port.take()) is not None:
                    port.give_back(chain)
                if not port.wait():
                    break
            accesses("wait", "kick")
            accesses("take", "kick")

    def engine(self, accesses: Accesses) -> None:
        """The engine's turns: it publishes each chain at once, and interrupts before it waits."""
        position = signalled = 0
        while True:
            accesses("take", "kick")
            more = True
            while more:
                self._suppress_kicks(accesses)
                avail_idx = accesses("load", "avail_idx")
                while position != avail_idx:
                    position += 1
                    accesses("store", "used_idx", position)
                if signalled != position:
                    self._interrupt(accesses, signalled, position)
                    signalled = position
                more = self._ask_for_kick(accesses, position)
            accesses("wait", "kick")

    def _suppress_kicks(self, accesses: Accesses) -> None:
        if not self._event_idx:
            accesses("store", "used_flags", 1)

    def _interrupt(self, accesses: Accesses, old: int, new: int) -> None:
        self._fence(accesses, "wants", self.device_fences)
        if self._event_idx:
            wanted = old <= accesses("load", "used_event") < new
        else:
            wanted = not accesses("load", "avail_flags")
        if wanted:
            accesses("signal", "call")

    def _ask_for_kick(self, accesses: Accesses, position: int) -> bool:
        """Return whether there are more chains already."""
        if self._event_idx:
            accesses("store", "avail_event", position)
        else:
            accesses("store", "used_flags", 0)
        self._fence(accesses, "enable", self.device_fences)
        return accesses("load", "avail_idx") != position

    def driver(self, accesses: Accesses, batches: tuple[int, ...]) -> None:
        """Offer each batch one by one, then sleep until all of it is used, then the next one."""
        offered = taken = 0
        for batch in batches:
            for _ in range(batch):
                offered += 1
                accesses("store", "avail_idx", offered)
                self._fence(accesses, "kick", self.driver_fences)
                if self._event_idx:
                    wanted = accesses("load", "avail_event") == offered - 1
                else:
                    wanted = not accesses("load", "used_flags")
                if wanted:
                    accesses("signal", "kick")
            while taken < offered:
                accesses("wait", "call")
                accesses("take", "call")
                if not self._event_idx:
                    accesses("store", "avail_flags", 1)
                while True:
                    taken = accesses("load", "used_idx")
                    if self._event_idx:
                        accesses("store", "used_event", taken)
                    else:
                        accesses("store", "avail_flags", 0)
                    self._fence(accesses, "sleep", self.driver_fences)
                    if accesses("load", "used_idx") == taken:
                        break

    def _fence(self, accesses: Accesses, name: str, fences: set[str]) -> None:
        if name in fences:
            accesses("fence")

    def ends(self, device: Program, *batches: int) -> Iterator[frozenset[int]]:
        """Return who waits at the end of each order."""
        return explore([lambda accesses: self.driver(accesses, batches), device])


@pytest.fixture
def memory() -> Iterator[GuestMemory]:
    memory = GuestMemory.create([(0, 1 << 20)])
    yield memory
    memory.close()


@pytest.fixture
def rig(memory: GuestMemory, monkeypatch: pytest.MonkeyPatch, event_idx: bool) -> Rig:
    return Rig(memory, monkeypatch, event_idx=event_idx)


def loses_a_wake_up(rig: Rig, program: str) -> bool:
    """Return whether in some order the driver waits for ever."""
    device = getattr(rig, program)
    ends = chain(rig.ends(device, 1, 1), rig.ends(device, 2))
    return any(DRIVER in waiting for waiting in ends)


@modes
@pytest.mark.parametrize("program", ["chain_server", "port", "engine"])
def test_no_order_loses_a_wake_up(rig: Rig, program: str) -> None:
    assert not loses_a_wake_up(rig, program)


@modes
@pytest.mark.parametrize(
    ("program", "fence"),
    [
        (program, fence)
        for program in ("chain_server", "port", "engine")
        for fence in ("enable", "wants", "kick", "sleep")
        # The common loop asks for a kick, with that fence, between publishing and interrupting.
        if (program, fence) != ("chain_server", "wants")
    ],
)
def test_each_fence_is_needed(rig: Rig, program: str, fence: str) -> None:
    rig.device_fences.discard(fence)
    rig.driver_fences.discard(fence)
    assert loses_a_wake_up(rig, program)
