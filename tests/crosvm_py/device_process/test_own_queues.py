# SPDX-License-Identifier: BSD-3-Clause
"""A device with a queue, a descriptor, a timer and commands of its own, in a process of its own."""

from __future__ import annotations

import os
import struct
from typing import TYPE_CHECKING, ClassVar

import pytest

from crosvm_py.kinds.kind import DeviceKind
from crosvm_py.kinds.order import DeviceOrder
from crosvm_py.kinds.table import DEVICE_KINDS
from devices.virtio.commands import Command, Drain, Obeyed, Refused, SetLink, SetSize, Waiting
from devices.virtio.device import SimpleDevice
from devices.virtio.queue.servers import PortServer
from sys_util.errors import GuestError
from sys_util.wire import Message
from tests.crosvm_py.device_rig import DeviceRig

if TYPE_CHECKING:
    from collections.abc import Iterator

    from crosvm_py.vmm.device_proxy import DeviceProcess
    from devices.virtio.context import DeviceContext
    from devices.virtio.queue.servers import QueueServer, StartedQueue
    from tests.crosvm_py.device_rig import RigQueue

WORD = 8  # the policies let a device read 8 bytes at a time


class Pipe(SimpleDevice):
    """Fill one chain of queue 0 with each word that comes through a pipe."""

    name: ClassVar[str] = "pipe"
    device_type: ClassVar[int] = 99
    queue_sizes: ClassVar[tuple[int, ...]] = (16,)
    seccomp_policy: ClassVar[str] = "rng_device"
    in_order: ClassVar[bool] = True

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._number = 0
        self._context: DeviceContext | None = None

    def features(self) -> int:
        return 0

    def config(self) -> bytes:
        return struct.pack("<I", self._number)

    def write_config(self, offset: int, data: bytes) -> None: ...

    def activate(self, features: int) -> None: ...

    def reset(self) -> None: ...

    def make_server(self, queue: StartedQueue) -> QueueServer:
        return PortServer(queue, lambda _index: False)

    def attach(self, context: DeviceContext) -> None:
        self._context = context
        context.add_fd(self._fd, self._on_readable)
        context.config_changed()  # before Ready, which says it anyway

    def _on_readable(self, _events: int) -> None:
        assert self._context is not None
        port = self._context.port(0)
        if port is None:
            return
        chain = port.take()
        if chain is not None:
            chain.writer.write(os.read(self._fd, WORD))
            port.give_back(chain)
            port.flush()

    def command(self, command: Command) -> Message:
        assert self._context is not None
        match command:
            case SetSize(number):
                self._number = number
                self._context.config_changed()
                return Obeyed()
            case Drain():
                self._context.call_later(0, self._give_up)
                return Waiting(0)
        return super().command(command)

    def _give_up(self) -> None:
        raise GuestError("the guest is mad")


@pytest.fixture(params=[pytest.param(True, marks=pytest.mark.root), False], ids=["jailed", "open"])
def rig(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[DeviceRig]:
    kind = DeviceKind("pipe", "rng_device", __name__, lambda _fields, fds: Pipe(fds[0]))
    monkeypatch.setitem(DEVICE_KINDS, "pipe", kind)
    with DeviceRig(sandbox=bool(request.param)) as rig:
        yield rig


@pytest.fixture
def pipe(rig: DeviceRig) -> Iterator[tuple[DeviceProcess, int]]:
    read_end, write_end = os.pipe()
    yield rig.start(DeviceOrder("pipe", "pipe", b"\x80", (read_end,), 0)), write_end
    os.close(write_end)


def run_command(rig: DeviceRig, device: DeviceProcess, command: Command) -> Message:
    answers: list[Message] = []
    device.command(command, answers.append)
    rig.until(lambda: bool(answers))
    return answers[0]


def offer(queue: RigQueue, chains: int = 1) -> None:
    for _ in range(chains):
        queue.ring.submit([], [WORD])


def words(queue: RigQueue) -> list[bytes]:
    return [data[:used] for _, used, data in queue.ring.collect()]


def held(rig: DeviceRig, device: DeviceProcess, verb: str) -> None:
    done: list[bool] = []
    getattr(device, verb)(lambda: done.append(True))
    rig.until(lambda: bool(done))


def test_word_from_the_host_reaches_the_driver(
    rig: DeviceRig, pipe: tuple[DeviceProcess, int]
) -> None:
    device, write_end = pipe
    (queue,) = rig.activate(device)
    offer(queue, 2)
    os.write(write_end, b"one.....two.....")
    rig.until(lambda: queue.ring.used_idx == 2)
    assert words(queue) == [b"one.....", b"two....."]
    assert queue.calls >= 0
    assert device.cells[0] == 2


def test_nothing_happens_while_it_is_paused(
    rig: DeviceRig, pipe: tuple[DeviceProcess, int]
) -> None:
    device, write_end = pipe
    (queue,) = rig.activate(device)
    offer(queue, 2)
    held(rig, device, "pause")
    os.write(write_end, b"word....")
    run_command(rig, device, SetSize(1))  # it is awake, and still
    assert queue.ring.used_idx == 0
    held(rig, device, "resume")
    rig.until(lambda: queue.ring.used_idx == 1)
    assert words(queue) == [b"word...."]


def test_command_is_answered_and_may_change_the_configuration(
    rig: DeviceRig, pipe: tuple[DeviceProcess, int]
) -> None:
    device, _ = pipe
    assert run_command(rig, device, SetSize(7)) == Obeyed()
    assert device.config == struct.pack("<I", 7)


def test_refused_command_says_why_and_the_device_goes_on(
    rig: DeviceRig, pipe: tuple[DeviceProcess, int]
) -> None:
    device, _ = pipe
    assert run_command(rig, device, SetLink(up=True)) == Refused("pipe devices know no link")
    assert run_command(rig, device, SetSize(1)) == Obeyed()


def break_ring(rig: DeviceRig, device: DeviceProcess, queue: RigQueue, write_end: int) -> None:
    queue.ring.set_avail_idx(1000)
    os.write(write_end, b"word....")


def give_up_later(rig: DeviceRig, device: DeviceProcess, queue: RigQueue, write_end: int) -> None:
    assert run_command(rig, device, Drain()) == Waiting(0)
    os.write(write_end, b"word....")


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        pytest.param(break_ring, "avail idx 1000 is 1000 ahead", id="ring"),
        pytest.param(give_up_later, "the guest is mad", id="timer"),
    ],
)
def test_broken_device_needs_a_reset_and_works_after_it(
    rig: DeviceRig, pipe: tuple[DeviceProcess, int], spoil: object, reason: str
) -> None:
    device, write_end = pipe
    (queue,) = rig.activate(device)
    assert callable(spoil)
    spoil(rig, device, queue, write_end)
    rig.until(lambda: device.status.word == "needs-reset")
    (line,) = [line for line in rig.lines if reason in line]
    assert line.startswith("pipe queue 0: ")
    device.reset()
    (fresh,) = rig.activate(device)
    offer(fresh)
    rig.until(lambda: fresh.ring.used_idx == 1)
    assert words(fresh) == [b"word...."]
    assert rig.deaths == []
