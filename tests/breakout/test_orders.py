# SPDX-License-Identifier: BSD-3-Clause
"""A vmm that a guest has taken over orders of its sealed warden what it shall not get.

It may have devices that are there ended, made again and forgotten, and a disk's file resized. It
gets no device, no process and no descriptor that it had not before.
"""

from __future__ import annotations

import os
import socket
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple

import pytest

from crosvm_py.kinds.order import pack_spec
from crosvm_py.warden import protocol
from crosvm_py.warden import warden as warden_module
from crosvm_py.warden.forge import ForgeProcess
from devices.virtio.block.spec import BlockSpec
from devices.virtio.rng.device import RngSpec
from sys_util.channel import Channel, socket_pair
from sys_util.errors import ChannelFull, VmmError
from sys_util.guest_memory import MemoryRegion
from tests.crosvm_py.device_rig import DeviceRig
from tests.fuzz.messages import message_types
from tests.support.strangers import good_fields

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sys_util.wire import Message

_REGIONS: Final = (MemoryRegion(0, 4 << 20, 0, 0),)
_ELSEWHERE: Final = (MemoryRegion(0, 1 << 40, 0, 0),)
RNG, DISK, NEW = 0, 1, 77
_TIMES: Final = 100
_RNG_SPEC: Final = pack_spec(RngSpec())
_DISK_SPEC: Final = pack_spec(BlockSpec("/etc/shadow"))


class Order(NamedTuple):
    """One attempt: what the vmm says, with how many descriptors."""

    name: str
    message: Message
    fds: int = 0


def _spawn(device_id: int, kind: str, spec: bytes, max_file_bytes: int = 0) -> protocol.Spawn:
    return protocol.Spawn(device_id, "spy", kind, spec, _REGIONS, max_file_bytes)


# For each of these the warden ends in order, and with it the VM.
ENDS: Final = (
    Order("spawn a device", _spawn(NEW, "rng", _RNG_SPEC), 2),
    Order("spawn a disk of the host's files", _spawn(NEW, "block", _DISK_SPEC, 1 << 40), 3),
    Order("spawn in the place of a device", _spawn(RNG, "block", _DISK_SPEC), 3),
    Order("spawn a device of no kind", _spawn(NEW, "/bin/sh", b""), 2),
    Order("make a running device twice", protocol.Respawn(RNG), 2),
    Order("make a device of no number", protocol.Respawn(NEW), 2),
    Order("renew a device of no number", protocol.Renew(NEW)),
    Order("forget a device of no number", protocol.Forget(NEW)),
    Order("resize a device of no number", protocol.Resize(NEW, 512)),
    Order("resize what is no disk", protocol.Resize(RNG, 512)),
    Order("resize to half a sector", protocol.Resize(DISK, 256)),
    Order("resize to nothing", protocol.Resize(DISK, 0)),
    # Words of the opener, who has a channel of its own, and of the warden itself.
    *(
        Order(f"say {kind.__name__}, which others say", kind(*good_fields(kind)[1:]), 1)
        for codec in (protocol.ORDERS_CODEC, protocol.OPENER_CODEC, protocol.VMM_CODEC)
        for kind in message_types(codec)
    ),
)
# These it may say. Nothing comes of them that the vmm could not have without.
BOUNDED: Final = (
    Order("seal again with other memory", protocol.Seal(_ELSEWHERE), 0),
    Order("kill a device of no number", protocol.Kill(NEW), 0),
    Order("pass descriptors that nobody asked for", protocol.Kill(NEW), 16),
)


def say(channel: Channel, order: Order) -> None:
    """Give an order, with descriptors that the giver has anyway."""
    while True:
        try:
            channel.send(order.message, [channel.fileno()] * order.fds)
        except ChannelFull:
            continue
        return


class Sealed:
    """A warden that is sealed, with two devices that run; its forge makes nothing."""

    def __init__(self, folder: Path) -> None:
        ours, self.vmm = socket_pair()
        forge, self.forges = socket_pair()
        self._socks = (ours, self.vmm, forge, self.forges)
        self._process = ForgeProcess(forge, os.getpid(), os.pidfd_open(os.getpid()))
        self.warden = warden_module.Warden(
            Channel(ours, protocol.WARDEN_CODEC), self._process, None, -1, None
        )
        image = os.open(folder / "disk", os.O_RDWR | os.O_CREAT)
        os.ftruncate(image, 4096)
        for number, kind, size, fds in ((RNG, "rng", 0, []), (DISK, "block", 4096, [image])):
            self.warden._new(_spawn(number, kind, b"", size), fds)
        self.warden._sealed = protocol.Seal(_REGIONS)
        self.devices = dict(self.warden._devices)
        for device in self.devices.values():
            device.pid, device.pidfd = os.getpid(), self._process.pidfd  # as if it ran

    def say(self, order: Order) -> None:
        """Say something to the warden, as the vmm does."""
        say(Channel(self.vmm, protocol.VMM_CODEC), order)

    def close(self) -> None:
        for device in self.devices.values():
            device.close()
        self.warden._loop.close()
        os.close(self._process.pidfd)
        for sock in self._socks:
            sock.close()


@pytest.fixture
def sealed(tmp_path: Path) -> Iterator[Sealed]:
    sealed = Sealed(tmp_path)
    yield sealed
    sealed.close()


def held(pid: int) -> int:
    return len(os.listdir(f"/proc/{pid}/fd"))


@pytest.mark.parametrize("order", ENDS, ids=lambda order: order.name)
def test_order_ends_the_warden_before_anything_is_made(sealed: Sealed, order: Order) -> None:
    before = held(os.getpid())
    sealed.say(order)
    with pytest.raises(VmmError):
        sealed.warden._on_message(0)
    assert sealed.warden._devices == sealed.devices
    assert held(os.getpid()) == before
    with pytest.raises(BlockingIOError):  # nobody was asked to make a process
        sealed.forges.recv(1, socket.MSG_DONTWAIT)


def processes_of(pid: int) -> dict[int, str]:
    """Return the children of a process, by number."""
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return {int(child): Path(f"/proc/{child}/comm").read_text() for child in children}


def test_lines_about_denied_calls_are_bounded(sealed: Sealed, lines: list[str]) -> None:
    order = Order("", protocol.VmmDenied((1 << 32) - 1, in_vcpu=True))
    sealed.say(order)
    sealed.warden._on_message(0)
    sealed.say(order)
    with pytest.raises(VmmError):
        sealed.warden._on_message(0)
    assert len(lines) == 1


@pytest.mark.root
def test_what_it_may_order_changes_nothing_and_a_device_ends_the_warden(tmp_path: Path) -> None:
    with DeviceRig(sandbox=True, has_opener=True) as rig:
        rng, disk = rig.rng(), rig.block(_image(tmp_path))
        rig.supervisor.seal(rig.memory)
        (queue,) = rig.activate(rng)
        pid = rig.warden.pid
        before = len(processes_of(pid)) + held(pid)
        for order in BOUNDED:
            for _ in range(_TIMES):
                say(rig.warden.channel, order)
                rig.loop.run_once(0)
        assert queue.request([], [64])[0] == 64
        # A mould may have come meanwhile, but nothing for each of the orders.
        assert len(processes_of(pid)) + held(pid) < before + _TIMES // 2
        assert {rng.pid, disk.pid} <= processes_of(pid).keys()
        assert not rig.deaths
        say(rig.warden.channel, ENDS[0])
        assert rig.warden_is_gone()
        assert rig.is_gone(rng)
        assert rig.is_gone(disk)


def _image(folder: Path) -> Path:
    image = folder / "image"
    image.write_bytes(bytes(4096))
    return image
