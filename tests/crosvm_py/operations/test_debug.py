# SPDX-License-Identifier: BSD-3-Clause
"""The dump of a device: memory, transport and process, if they are there."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple, cast

import pytest

from crosvm_py.device_process import protocol
from crosvm_py.operations.debug import dump_device
from crosvm_py.requests.catalogue import RESPONSES
from crosvm_py.requests.debug import DeviceDump, DumpDevice, RingWords
from crosvm_py.requests.protocol import MAX_RESPONSE_BYTES
from devices.pci.msix import VectorState
from devices.virtio.backend import (
    SERVERS,
    DeviceWords,
    QueuePosition,
    RingPosition,
    TransportQueue,
    TransportState,
)
from sys_util.errors import ConfigError
from sys_util.guest_memory import GuestMemory
from sys_util.wire import encode
from tests.crosvm_py.hostile_device import HostileDevice, RecordedEvents
from tests.crosvm_py.operations.running_vm import vm_of

if TYPE_CHECKING:
    from collections.abc import Iterator

    from crosvm_py.machine.board import Board
    from crosvm_py.requests.protocol import Response
    from devices.virtio.backend import Server

MOST = (1 << 64) - 1
QUEUE = TransportQueue(8, True, False, 1, False, 0x1000, 0x2000, 0x3000, True, False, True)
LARGEST = TransportQueue(
    0x8000, True, True, 0xFFFF, True, MOST - 15, MOST - 1, MOST - 3, True, True, True
)
VECTOR = VectorState(True, True, True, MOST, 0xFFFF_FFFF)


class FakeMachine(NamedTuple):
    memory: GuestMemory


class Described(RecordedEvents):
    """A transport whose state the test sets."""

    queues: tuple[TransportQueue, ...] = (QUEUE,)
    vectors: tuple[VectorState, ...] = (VECTOR,)

    def describe(self) -> TransportState:
        assert self._lock.held
        return TransportState(
            0xFF, MOST, True, True, True, 0xFFFF, 0xFF, True, True, self.queues, self.vectors
        )


@pytest.fixture
def memory() -> Iterator[GuestMemory]:
    memory = GuestMemory.create([(0, 1 << 20)])
    yield memory
    memory.close()


@pytest.fixture
def events(device: HostileDevice) -> Described:
    device.host.events = events = Described(device.lock)
    return events


def dump(device: HostileDevice, memory: GuestMemory) -> list[Response]:
    found: list[Response] = []
    vm = vm_of(device.host)._replace(machine=cast("Board", FakeMachine(memory)))
    dump_device(vm, DumpDevice(device.host.name)).deliver_to(found.append)
    return found


def answered(device: HostileDevice, memory: GuestMemory, *queues: QueuePosition) -> DeviceDump:
    found = dump(device, memory)
    device.send(protocol.Description(1, (), None, queues))
    device.turn()
    (answer,) = found
    assert isinstance(answer, DeviceDump)
    assert RESPONSES.decode(encode(answer)) == answer
    return answer


def test_rings_are_read_from_guest_memory(
    device: HostileDevice, events: Described, memory: GuestMemory
) -> None:
    memory.write(0x2000, bytes((1, 0, 5, 0)))
    memory.write(0x2000 + 4 + 16, bytes((6, 0)))
    memory.write(0x3000, bytes((2, 0, 7, 0)))
    memory.write(0x3000 + 4 + 64, bytes((8, 0)))
    position = QueuePosition(0, "device", RingPosition(1, 2, 3, 4, 5, False), True)
    answer = answered(device, memory, position)
    (queue,) = answer.queues
    assert queue.ring == RingWords(1, 5, 6, 2, 7, 8)
    assert queue.transport == QUEUE
    assert answer.words == DeviceWords((), None, (position,))
    assert answer.alive


def test_rings_that_no_memory_has_are_told_as_such(
    device: HostileDevice, events: Described, memory: GuestMemory
) -> None:
    events.queues = (LARGEST, QUEUE._replace(enabled=False))
    assert [queue.ring for queue in answered(device, memory).queues] == [None, None]


def test_device_without_transport_is_told(device: HostileDevice, memory: GuestMemory) -> None:
    device.host.events = None
    answer = answered(device, memory)
    assert (answer.transport, answer.queues) == (None, ())


def test_device_without_process_is_told_at_once(
    device: HostileDevice, events: Described, memory: GuestMemory
) -> None:
    device.host.close()
    (answer,) = dump(device, memory)
    assert isinstance(answer, DeviceDump)
    assert (answer.alive, answer.words) == (False, None)
    assert len(answer.queues) == 1


def test_device_that_says_nothing_is_told_without_its_words(
    device: HostileDevice, events: Described, memory: GuestMemory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("crosvm_py.operations.debug.ANSWER_SECONDS", 0.0)
    found = dump(device, memory)
    while not found:
        device.turn()
    (answer,) = found
    assert isinstance(answer, DeviceDump)
    assert (answer.alive, answer.unanswered, answer.words) == (True, 1, None)


def test_largest_dump_fits_an_answer(
    device: HostileDevice, events: Described, memory: GuestMemory
) -> None:
    events.queues = (LARGEST._replace(avail_ring=0x2000, used_ring=0x3000),) * 64
    events.vectors = (VECTOR,) * 65
    device.host.cells = [MOST] * 20
    longest = max(SERVERS, key=len)
    position = QueuePosition(0xFFFF, longest, RingPosition(*(0xFFFF,) * 5, True), True)
    assert len(encode(answered(device, memory, *(position,) * 64))) <= MAX_RESPONSE_BYTES


@pytest.mark.parametrize("server", SERVERS)
def test_every_server_of_a_queue_may_be_told(
    server: Server, device: HostileDevice, memory: GuestMemory
) -> None:
    """Also where the native code serves a card, whose process once ended for telling it."""
    dump = answered(device, memory, QueuePosition(0, server, None, False))
    assert dump.words is not None
    assert dump.words.queues[0].server == server
    assert RESPONSES.decode(encode(dump)) == dump


def test_device_that_is_not_there_is_refused(device: HostileDevice, memory: GuestMemory) -> None:
    vm = vm_of(device.host)
    with pytest.raises(ConfigError, match="this VM has no device 'net:7'"):
        dump_device(vm, DumpDevice("net:7"))
