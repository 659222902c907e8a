# SPDX-License-Identifier: BSD-3-Clause
"""Resize from a client to the file: order of the steps, refusals, and a jailed disk for real."""

from __future__ import annotations

import fcntl
import os
import resource
import stat
import struct
from typing import TYPE_CHECKING

import msgpack
import pytest

from crosvm_py.care import ALWAYS, NEVER
from crosvm_py.device_process import protocol as device_protocol
from crosvm_py.kinds.order import DeviceOrder
from crosvm_py.operations.resize_disk import resize_disk
from crosvm_py.requests.catalogue import REQUESTS
from crosvm_py.requests.devices import ResizeDisk
from crosvm_py.requests.protocol import Failed
from crosvm_py.warden import protocol
from crosvm_py.warden.resize import resize_file
from devices.virtio.commands import CheckSize, Command, DiskSize, Obeyed, Refused, SetSize
from sys_util.errors import ConfigError, ProtocolError
from sys_util.wire import Message, encode
from tests.crosvm_py.device_rig import DeviceRig
from tests.crosvm_py.fake_warden import FakeWarden
from tests.crosvm_py.hostile_device import RecordedEvents, WatchedLock
from tests.crosvm_py.operations.running_vm import supervised

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from crosvm_py.requests.protocol import Response
    from crosvm_py.vmm.device_proxy import DeviceProcess

OLD, NEW_SMALL, NEW_LARGE = 4096, 1024, 8192
SECTOR = 512
CONFIG = struct.pack("<Q", OLD // SECTOR) + bytes(8)


class FakeVm:
    """A supervisor between a fake warden and a fake disk."""

    def __init__(self, *, writable: bool = True, restarts: int | None = NEVER) -> None:
        self.warden = FakeWarden(restarts=restarts)
        self.file_fd = os.memfd_create("image", os.MFD_CLOEXEC)
        limit = OLD if writable else 0
        order = DeviceOrder("block:0", "block", b"\x80", (os.dup(self.file_fd),), limit)
        self.disk = self.warden.spawn_order(order, device_protocol.Ready(2, 0, (256,), CONFIG))
        self.size_bytes = OLD
        self.answers: list[Response] = []

    def resize(self, size_bytes: int) -> None:
        request = ResizeDisk(0, size_bytes)
        resize_disk(supervised(self.warden.supervisor), request).deliver_to(self.answers.append)

    def command(self) -> Command:
        """Return the order to the disk that must be there, and carry it out."""
        received = self.warden.devices[0].receive()
        assert received is not None
        order = received[0]
        assert isinstance(order, device_protocol.Order)
        answer: Message = Obeyed()
        if isinstance(order.command, CheckSize):
            answer = DiskSize(self.size_bytes)
        elif isinstance(order.command, SetSize):
            self.size_bytes = order.command.size_bytes
        self.answer_disk(order.request_id, answer)
        return order.command

    def answer_disk(self, request_id: int, answer: Message) -> None:
        self.warden.devices[0].send(device_protocol.Answer(request_id, answer))
        self.warden.turn()

    def order_to_warden(self) -> tuple[int, int]:
        message, fds = self.warden.take()
        assert isinstance(message, protocol.Resize)
        assert fds == []  # the warden has the file, and the vmm has not
        return message.device_id, message.size_bytes

    def grow_file(self) -> None:
        self.warden.send(protocol.Resized(0, NEW_LARGE, ""))

    def close(self) -> None:
        self.warden.close()
        os.close(self.file_fd)


@pytest.fixture
def vm(lines: list[str]) -> Iterator[FakeVm]:
    vm = FakeVm()
    yield vm
    vm.close()


def test_grown_file_is_there_before_the_driver_hears_of_it(vm: FakeVm) -> None:
    vm.resize(NEW_LARGE)
    assert vm.command() == CheckSize(NEW_LARGE)
    assert vm.order_to_warden() == (0, NEW_LARGE)
    vm.warden.send(protocol.Resized(0, NEW_LARGE, ""))
    assert vm.answers == []
    assert vm.command() == SetSize(NEW_LARGE, measured=True)
    assert vm.answers == [DiskSize(NEW_LARGE)]


def test_shrunk_disk_refuses_the_end_before_it_is_gone(vm: FakeVm, lines: list[str]) -> None:
    vm.resize(NEW_SMALL)
    assert vm.command() == CheckSize(NEW_SMALL)
    assert vm.command() == SetSize(NEW_SMALL)
    assert vm.order_to_warden() == (0, NEW_SMALL)
    vm.warden.send(protocol.Resized(0, NEW_SMALL, ""))
    vm.command()
    assert vm.answers == [DiskSize(NEW_SMALL)]
    assert lines == ["block:0: cut from 4096 to 1024 bytes; what was behind that is lost"]


@pytest.mark.parametrize("size_bytes", [NEW_LARGE, NEW_SMALL])
def test_disk_that_refuses_ends_it_and_nothing_is_said_to_be_lost(
    vm: FakeVm, lines: list[str], size_bytes: int
) -> None:
    vm.resize(size_bytes)
    vm.answer_disk(1, Refused("a read-only disk keeps its size"))
    assert vm.answers == [Failed("block:0: a read-only disk keeps its size")]
    assert vm.warden.channel.receive() is None
    assert lines == []
    vm.resize(size_bytes)
    assert vm.command() == CheckSize(size_bytes)


def test_file_that_cannot_change_leaves_the_driver_what_it_had(
    vm: FakeVm, lines: list[str]
) -> None:
    vm.resize(NEW_SMALL)
    assert [vm.command(), vm.command()] == [CheckSize(NEW_SMALL), SetSize(NEW_SMALL)]
    vm.order_to_warden()
    vm.warden.send(protocol.Resized(0, 0, "No space left on device"))
    assert vm.command() == SetSize(OLD, measured=True)
    assert vm.answers == [Failed("block:0: No space left on device")]
    assert lines == []


def test_block_device_has_its_own_size(vm: FakeVm) -> None:
    vm.resize(NEW_LARGE)
    vm.command()
    vm.order_to_warden()
    vm.warden.send(protocol.Resized(0, OLD * 4, ""))
    assert vm.command() == SetSize(OLD * 4, measured=True)
    assert vm.answers == [DiskSize(OLD * 4)]


def test_second_resize_waits_for_no_first_one_and_the_disk_is_not_asked(vm: FakeVm) -> None:
    """A disk that is asked to shrink does so at once, so it must not be asked at all."""
    vm.resize(NEW_LARGE)
    for ask in (vm.command, vm.order_to_warden, vm.grow_file, vm.command):
        with pytest.raises(ConfigError, match="block:0: another resize is under way"):
            vm.resize(NEW_SMALL)
        ask()
    assert vm.answers == [DiskSize(NEW_LARGE)]
    assert vm.warden.devices[0].receive() is None
    vm.resize(NEW_SMALL)
    assert [vm.command(), vm.command()] == [CheckSize(NEW_SMALL), SetSize(NEW_SMALL)]


def test_disk_that_dies_meanwhile_is_an_answer(vm: FakeVm) -> None:
    vm.resize(NEW_LARGE)
    vm.disk.close()
    assert vm.answers == [Failed("block:0: the device process has ended")]


def test_disk_that_was_restarted_is_resized_as_before() -> None:
    vm = FakeVm(restarts=ALWAYS)
    end_and_make_again(vm)
    vm.resize(NEW_LARGE)
    vm.command()
    assert vm.order_to_warden() == (0, NEW_LARGE)
    vm.close()


def end_and_make_again(vm: FakeVm) -> None:
    vm.warden.devices[0].close()
    vm.warden.turn()
    vm.warden.take()  # Kill
    vm.warden.send(protocol.Exited(0, 50, 1))
    vm.warden.make(0, device_protocol.Ready(2, 0, (256,), CONFIG))


@pytest.mark.parametrize("ends_first", [True, False])
def test_disk_that_ends_when_its_file_has_its_size_is_told_again(ends_first: bool) -> None:
    vm = FakeVm(restarts=ALWAYS)
    vm.resize(NEW_LARGE)
    vm.command()
    assert vm.order_to_warden() == (0, NEW_LARGE)
    if ends_first:
        vm.warden.devices[0].close()
        vm.warden.turn()
        vm.warden.take()  # Kill
        vm.warden.send(protocol.Resized(0, NEW_LARGE, ""))
        vm.warden.send(protocol.Exited(0, 50, 1))
        vm.warden.make(0, device_protocol.Ready(2, 0, (256,), CONFIG))
    else:
        vm.warden.send(protocol.Resized(0, NEW_LARGE, ""))
        end_and_make_again(vm)
    assert vm.answers == []
    assert vm.command() == SetSize(NEW_LARGE, measured=True)
    assert vm.answers == [DiskSize(NEW_LARGE)]
    vm.close()


def test_disk_that_never_comes_again_is_an_answer() -> None:
    vm = FakeVm(restarts=ALWAYS)
    vm.resize(NEW_LARGE)
    vm.command()
    vm.order_to_warden()
    vm.warden.send(protocol.Resized(0, NEW_LARGE, ""))
    vm.warden.devices[0].close()
    vm.warden.turn()
    assert vm.answers == []
    vm.disk.give_up()
    assert vm.answers == [Failed("block:0: the device process has ended")]
    vm.close()


@pytest.mark.parametrize("size_bytes", [NEW_LARGE, NEW_SMALL])
def test_disk_without_a_file_to_resize_keeps_its_size(size_bytes: int, lines: list[str]) -> None:
    vm = FakeVm(writable=False)
    vm.resize(size_bytes)
    vm.command()
    if size_bytes < OLD:
        assert vm.command() == SetSize(size_bytes)
    assert vm.command() == SetSize(OLD, measured=True)
    assert lines == []
    assert vm.answers == [Failed("block:0: it writes no file that could be resized")]
    vm.close()


def test_resize_that_nobody_asked_for_ends_the_vm(vm: FakeVm) -> None:
    vm.warden.send(protocol.Resized(0, 1, ""))
    assert vm.warden.deaths == [f"warden (pid {vm.warden.pid}): device 0 was not to be resized"]


def test_disk_that_is_not_there_is_refused(vm: FakeVm) -> None:
    with pytest.raises(ConfigError, match=r"no device 'block:1' \(it has block:0\)"):
        resize_disk(supervised(vm.warden.supervisor), ResizeDisk(1, 512))


@pytest.mark.parametrize("size_bytes", [0, -1, 1 << 63, 1e10, "1", None, True])
def test_size_beyond_a_file_never_leaves_the_client(size_bytes: object) -> None:
    payload = msgpack.packb([7, 0, size_bytes])
    with pytest.raises(ProtocolError, match="is not a whole number in 1"):
        REQUESTS.decode(payload)


def test_greatest_file_is_a_request() -> None:
    request = ResizeDisk(0, (1 << 63) - 1)
    assert REQUESTS.decode(encode(request)) == request


# For real: a warden, a disk in its jail, a file.


@pytest.fixture(params=[pytest.param(True, marks=pytest.mark.root), False], ids=["jailed", "open"])
def rig(request: pytest.FixtureRequest) -> Iterator[DeviceRig]:
    with DeviceRig(sandbox=bool(request.param)) as rig:
        yield rig


class Driver(RecordedEvents):
    """What the driver is told of the capacity."""

    def __init__(self) -> None:
        super().__init__(WatchedLock())
        self.capacities: list[int] = []

    def config_changed(self, config: bytes) -> None:
        self.capacities.append(int.from_bytes(config[:8], "little"))


def real_resize(rig: DeviceRig, size_bytes: int) -> Response:
    answers: list[Response] = []
    resize_disk(supervised(rig.supervisor), ResizeDisk(0, size_bytes)).deliver_to(answers.append)
    rig.until(lambda: bool(answers))
    return answers[0]


def write(sector: int) -> list[bytes]:
    return [struct.pack("<IIQ", 1, 0, sector), b"x" * SECTOR]


def limit_of(disk: DeviceProcess) -> int:
    return resource.prlimit(disk.pid, resource.RLIMIT_FSIZE)[0]


def test_real_disk_grows_and_shrinks(rig: DeviceRig, tmp_path: Path) -> None:
    image = tmp_path / "disk.img"
    image.write_bytes(bytes(OLD))
    disk = rig.block(image)
    disk.events = driver = Driver()
    (queue,) = rig.activate(disk)
    before = limit_of(disk)

    assert real_resize(rig, NEW_LARGE) == DiskSize(NEW_LARGE)
    assert image.stat().st_size == NEW_LARGE
    assert int.from_bytes(disk.config[:8], "little") == NEW_LARGE // SECTOR
    assert queue.request(write(NEW_LARGE // SECTOR - 1), [1]) == (1, b"\0")
    assert queue.request(write(NEW_LARGE // SECTOR), [1]) == (1, b"\1")
    assert limit_of(disk) in (NEW_LARGE, before)

    assert real_resize(rig, NEW_SMALL) == DiskSize(NEW_SMALL)
    assert image.stat().st_size == NEW_SMALL
    assert queue.request(write(NEW_SMALL // SECTOR), [1]) == (1, b"\1")
    assert queue.request(write(NEW_SMALL // SECTOR - 1), [1]) == (1, b"\0")
    assert driver.capacities == [NEW_LARGE // SECTOR, NEW_SMALL // SECTOR]


@pytest.mark.root
def test_jailed_disk_is_bound_to_the_size_of_its_file(tmp_path: Path) -> None:
    image = tmp_path / "disk.img"
    image.write_bytes(bytes(OLD))
    with DeviceRig(sandbox=True) as rig:
        disk = rig.block(image)
        assert limit_of(disk) == OLD
        real_resize(rig, NEW_LARGE)
        assert limit_of(disk) == NEW_LARGE
        real_resize(rig, NEW_SMALL)
        assert limit_of(disk) == NEW_SMALL


def test_real_refusal_of_the_host_changes_nothing(rig: DeviceRig, tmp_path: Path) -> None:
    image = tmp_path / "disk.img"
    image.write_bytes(bytes(OLD))
    disk = rig.block(image)
    answer = real_resize(rig, (1 << 63) - SECTOR)
    assert answer == Failed("block:0: File too large")
    assert image.stat().st_size == OLD
    assert int.from_bytes(disk.config[:8], "little") == OLD // SECTOR


def test_real_odd_size_is_refused_by_the_disk(rig: DeviceRig, tmp_path: Path) -> None:
    image = tmp_path / "disk.img"
    image.write_bytes(bytes(OLD))
    rig.block(image)
    assert real_resize(rig, 4097) == Failed(
        "block:0: 4097 bytes is not a multiple of the sector 512"
    )
    assert image.stat().st_size == OLD


def test_block_device_is_measured_and_left_alone(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    image = tmp_path / "device"
    image.write_bytes(bytes(OLD))
    monkeypatch.setattr(stat, "S_ISBLK", lambda _mode: True)
    fd = os.open(image, os.O_RDWR)
    assert resize_file(os.getpid(), fd, NEW_LARGE) == OLD
    assert os.fstat(fd).st_size == OLD
    os.close(fd)


def test_file_that_cannot_change_leaves_the_bound_of_its_writer() -> None:
    fd = os.memfd_create("sealed", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    os.ftruncate(fd, OLD)
    fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_GROW)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (OLD, before[1]))
    try:
        with pytest.raises(PermissionError, match="not permitted"):
            resize_file(os.getpid(), fd, NEW_LARGE)
        assert resource.getrlimit(resource.RLIMIT_FSIZE)[0] == OLD
        assert resize_file(os.getpid(), fd, NEW_SMALL) == NEW_SMALL
        assert resource.getrlimit(resource.RLIMIT_FSIZE)[0] == NEW_SMALL
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        os.close(fd)
