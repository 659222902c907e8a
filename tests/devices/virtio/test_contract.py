# SPDX-License-Identifier: BSD-3-Clause
"""What every virtio device keeps to. A new device adds a line to ``DEVICES`` and gets all of it."""

from __future__ import annotations

import os
import socket
import struct
from typing import TYPE_CHECKING, NamedTuple

import msgpack
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from devices.virtio.balloon.device import Balloon, BalloonSpec
from devices.virtio.block.device import Block
from devices.virtio.block.spec import BlockSpec
from devices.virtio.console.device import Console, ConsoleSpec, PortSpec
from devices.virtio.features import (
    BASE_FEATURES,
    VIRTIO_F_IN_ORDER,
    VIRTIO_F_VERSION_1,
    VIRTIO_RING_F_INDIRECT_DESC,
)
from devices.virtio.mem.device import Mem, MemSpec
from devices.virtio.net.device import Net
from devices.virtio.net.state import NetSpec
from devices.virtio.net.stream import StreamEnd
from devices.virtio.queue.split_queue import QueueError, QueueState
from devices.virtio.queue.worker import QueueWorker
from devices.virtio.rng.device import Rng, RngSpec
from devices.virtio.vsock.common import VsockSpec
from devices.virtio.vsock.device import Vsock
from devices.virtio.vsock.packet import VMADDR_CID_HOST, Header, Op, SocketType, reset_reply
from sys_util.errors import ProtocolError
from sys_util.facts import fields_of
from sys_util.guest_memory import GuestMemory
from tests.support.device_context import FakeContext
from tests.support.driver_queue import INDIRECT, NEXT, WRITE, Desc, DriverQueue

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from devices.virtio.device import VirtioDevice

pytestmark = pytest.mark.usefixtures("lines")

VERSION_1 = 1 << VIRTIO_F_VERSION_1
GUEST_BYTES = 0x100000


class Case(NamedTuple):
    """One device, and one request on queue 0 that it answers with ``answer_bytes``."""

    spec: object
    build: Callable[[], VirtioDevice]
    out: list[bytes]
    into: list[int]
    answer_bytes: int


def build_block() -> Block:
    fd = os.memfd_create("image", os.MFD_CLOEXEC)
    os.truncate(fd, 64 * 1024)
    return Block(BlockSpec("image", sparse=True, num_queues=2), fd)


CONSOLE = ConsoleSpec((PortSpec("", True, "none", "regular"),))


def build_console() -> Console:
    return Console(CONSOLE, [os.open("/dev/zero", os.O_RDONLY | os.O_CLOEXEC)])


VSOCKS: list[Vsock] = []  # whose sockets are to be closed


class TalkativeVsock(Vsock):
    """Resets for connections that are not there: always a packet for the driver."""

    def activate(self, features: int) -> None:
        super().activate(features)
        nonsense = Header(3, VMADDR_CID_HOST, 1, 2, 0, SocketType.STREAM, Op.RW, 0, 0, 0)
        self._muxer._resets.extend([reset_reply(nonsense)] * 1000)


def build_vsock() -> Vsock:
    fds = [socket.socket(socket.AF_UNIX).detach() for _ in range(3)]
    VSOCKS.append(TalkativeVsock(VsockSpec(3), fds))
    return VSOCKS[-1]


ENDS: list[StreamEnd] = []  # to be closed, too
NET = NetSpec(bytes(6), 1500, tap=False)


class TalkativeEnd(StreamEnd):
    """A network that always has a frame for the driver, so short that no buffers are merged."""

    def receive(self, vectors: Sequence[memoryview]) -> int:
        data = bytes(12)
        for vector in vectors:
            vector[: len(data)] = data[: len(vector)]
            data = data[len(vector) :]
        return 12


def build_net() -> Net:
    net = Net(NET, [socket.socket(socket.AF_UNIX).detach()])
    net.ends[0].close()
    ENDS.append(TalkativeEnd(socket.socket(socket.AF_UNIX).detach()))
    net.ends = ENDS[-1:]
    return net


HOT = 1 << 32  # where memory of virtio-mem may be

DEVICES = {
    "net": Case(NET, build_net, [], [100], 12),
    "balloon": Case(BalloonSpec(), lambda: Balloon(BalloonSpec()), [struct.pack("<I", 240)], [], 0),
    "console": Case(CONSOLE, build_console, [], [64], 64),
    "vsock": Case(VsockSpec(3), build_vsock, [], [100], 44),
    "mem": Case(MemSpec(), lambda: Mem(MemSpec()), [struct.pack("<H6xQH6x", 3, HOT, 1)], [10], 10),
    "rng": Case(RngSpec(), lambda: Rng(RngSpec()), [], [64], 64),
    "block": Case(BlockSpec("image"), build_block, [struct.pack("<IIQ", 0, 0, 1)], [512, 1], 513),
}


class Running:
    """A device with its worker and a driver on queue 0."""

    def __init__(self, case: Case) -> None:
        self.case = case
        self.memory = GuestMemory.create([(0, GUEST_BYTES)], hot_ranges=[(HOT, 4 << 20, 2 << 20)])
        self.device = case.build()
        self.worker = QueueWorker(self.device, self.memory)
        self.device.attach(FakeContext(self.memory, self.worker))
        self.kick_fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self.call_fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self.start()

    def start(self, *, resume: bool = False) -> None:
        """Let a driver take the device over, as after a reset."""
        self.features = self.worker.offered_features & ~(1 << 29)
        self.driver = DriverQueue(self.memory, 16)
        if not resume:
            self.memory.write(0x1000, bytes(0x1000))
        self.device.activate(self.features)
        activation = self.driver.activation(0, self.kick_fd, self.call_fd, resume=resume)
        self.worker.start_queue(activation, self.features)

    def good_request_is_answered(self) -> None:
        self.driver.submit(self.case.out, self.case.into)
        assert self.worker.on_kick(0) is False
        assert [used for _, used, _ in self.driver.collect()] == [self.case.answer_bytes]

    def close(self) -> None:
        self.worker.stop_queue(0)
        os.close(self.kick_fd)
        os.close(self.call_fd)
        self.memory.close()


@pytest.fixture(autouse=True)
def _close_sockets() -> Iterator[None]:
    yield
    while ENDS:
        ENDS.pop().close()
    while VSOCKS:
        muxer = VSOCKS.pop()._muxer
        muxer._attempts._broker._channel.close()
        for listener, _ in muxer._entrance._listeners:
            listener.close()


@pytest.fixture(params=DEVICES, ids=str)
def running(request: pytest.FixtureRequest) -> Iterator[Running]:
    running = Running(DEVICES[request.param])
    yield running
    running.close()


def test_describes_itself(running: Running) -> None:
    device = running.device
    assert device.name
    assert device.seccomp_policy.endswith("_device")
    assert device.device_type > 0
    assert device.queue_sizes
    assert all(size & (size - 1) == 0 < size <= 32768 for size in device.queue_sizes)
    assert device.features() & (BASE_FEATURES | 1 << VIRTIO_F_IN_ORDER) == 0
    assert device.config() == device.config()


@pytest.mark.parametrize("case", DEVICES.values(), ids=DEVICES)
def test_spec_crosses_to_the_device_process_as_plain_fields(case: Case) -> None:
    fields = fields_of(case.spec)
    plain = msgpack.unpackb(msgpack.packb(fields), use_list=False)
    assert plain == fields
    assert type(case.spec)(**plain) == case.spec


def test_answers_a_good_request(running: Running) -> None:
    running.good_request_is_answered()


def test_answers_through_an_indirect_table(running: Running) -> None:
    running.driver.submit(running.case.out, running.case.into, indirect=True)
    running.worker.on_kick(0)
    assert [used for _, used, _ in running.driver.collect()] == [running.case.answer_bytes]


def test_features_that_were_not_offered_are_refused(running: Running) -> None:
    running.worker.stop_queue(0)
    unknown = ~running.worker.offered_features & 0xFFFF_FFFF_FFFF_FFFF
    lowest = unknown & -unknown
    with pytest.raises(ProtocolError, match="were not on offer"):
        running.worker.start_queue(running.driver.activation(), running.features | lowest)


def test_works_with_no_feature_but_version_1(running: Running) -> None:
    running.worker.stop_queue(0)
    running.device.reset()
    running.driver = DriverQueue(running.memory, 16)
    running.memory.write(0x1000, bytes(0x1000))
    running.device.activate(VERSION_1)
    running.worker.start_queue(
        running.driver.activation(0, running.kick_fd, running.call_fd), VERSION_1
    )
    running.good_request_is_answered()


MALFORMED = [
    pytest.param({0: Desc(0x8000, 16, NEXT, 0)}, id="loop"),
    pytest.param({0: Desc(0x8000, 16, NEXT, 99)}, id="next"),
    pytest.param({0: Desc(1 << 48, 16, WRITE)}, id="address"),
    pytest.param({0: Desc(0x8000, 17, INDIRECT)}, id="indirect"),
    pytest.param({0: Desc(0x8000, 1, WRITE | NEXT, 1), 1: Desc(0x8000, 1)}, id="order"),
    pytest.param({0: Desc(0, 0)}, id="nothing"),
    pytest.param({0: Desc(0x8000, 0xFFFF_FFFF, WRITE)}, id="huge"),
]


@pytest.mark.parametrize("table", MALFORMED)
def test_malformed_chain_comes_back_unused_and_the_next_one_works(
    running: Running, table: dict[int, Desc]
) -> None:
    running.driver.offer(0, table)
    running.worker.on_kick(0)
    assert [(used.id, used.len) for used in running.driver.take_used()] == [(0, 0)]
    running.good_request_is_answered()


def test_ring_that_makes_no_sense_ends_in_a_reset_that_heals(running: Running) -> None:
    running.driver.set_avail_idx(0x7000)
    with pytest.raises(QueueError, match="ahead of a queue"):
        running.worker.on_kick(0)
    running.worker.stop_queue(0)
    running.device.reset()
    running.start()
    running.good_request_is_answered()


def test_reset_with_requests_waiting_forgets_them(running: Running) -> None:
    for _ in range(3):
        running.driver.submit(running.case.out, running.case.into)
    running.worker.stop_queue(0)
    running.device.reset()
    before = running.memory.read(0, GUEST_BYTES)
    assert running.worker.on_kick(0) is False
    assert running.memory.read(0, GUEST_BYTES) == before
    running.start()
    assert running.worker.states() == {0: QueueState(0, 0)}
    running.good_request_is_answered()


def test_stopped_queue_touches_no_memory(running: Running) -> None:
    running.driver.submit(running.case.out, running.case.into)
    running.worker.stop_queue(0)
    assert running.worker.on_kick(0) is False
    assert running.driver.collect() == []


def test_queue_reset_starts_the_queue_afresh(running: Running) -> None:
    running.good_request_is_answered()
    running.worker.stop_queue(0)
    running.memory.write(0x1000, bytes(0x1000))
    running.driver = DriverQueue(running.memory, 8, base=0x2000)
    running.worker.start_queue(
        running.driver.activation(0, running.kick_fd, running.call_fd), running.features
    )
    running.good_request_is_answered()


def test_another_process_takes_over_where_the_first_stood(running: Running) -> None:
    running.good_request_is_answered()
    driver = running.driver
    driver.submit(running.case.out, running.case.into)
    device = running.case.build()
    successor = QueueWorker(device, running.memory)
    device.attach(FakeContext(running.memory, successor))
    device.activate(running.features)
    successor.start_queue(
        driver.activation(0, running.kick_fd, running.call_fd, resume=True), running.features
    )
    successor.on_kick(0)
    assert [used for _, used, _ in driver.collect()] == [running.case.answer_bytes]
    assert successor.states() == {0: QueueState(2, 2)}


def test_pause_holds_requests_and_resume_answers_them(running: Running) -> None:
    running.worker.pause()
    running.driver.submit(running.case.out, running.case.into)
    running.worker.on_kick(0)
    assert running.driver.collect() == []
    running.worker.resume()
    running.worker.on_kick(0)
    assert [used for _, used, _ in running.driver.collect()] == [running.case.answer_bytes]


@pytest.mark.parametrize("offset", [0, 3, 0xFFFF])
def test_write_to_config_changes_nothing_else(running: Running, offset: int) -> None:
    before = running.device.config()
    running.device.write_config(offset, b"\xff" * 8)
    assert running.device.config() == before
    running.good_request_is_answered()


buffers = st.lists(st.binary(max_size=600), max_size=3)
lengths = st.lists(st.integers(0, 600), max_size=3)


# Not the balloon: some random bytes tell it to give the rings away. Nor the network card, whose
# buffers wait for a frame; it has random drivers of its own.
@pytest.mark.parametrize("name", sorted(DEVICES.keys() - {"balloon", "net"}))
@settings(max_examples=40, deadline=None)
@given(requests=st.lists(st.tuples(buffers, lengths, st.booleans()), min_size=1, max_size=5))
def test_random_requests_come_back_once_and_never_overstated(
    name: str, requests: list[tuple[list[bytes], list[int], bool]]
) -> None:
    running = Running(DEVICES[name])
    for out, into, indirect in requests:
        request = running.driver.submit(out or [b""], into, indirect=indirect)
        running.worker.on_kick(0)
        ((finished, used, data),) = running.driver.collect()
        assert finished == request
        assert used <= len(data) == sum(into)
    running.good_request_is_answered()
    running.close()


def test_base_features_are_offered(running: Running) -> None:
    offered = running.worker.offered_features
    assert offered & BASE_FEATURES == BASE_FEATURES
    assert offered >> VIRTIO_RING_F_INDIRECT_DESC & 1
