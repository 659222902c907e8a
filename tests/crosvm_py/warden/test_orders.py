# SPDX-License-Identifier: BSD-3-Clause
"""Devices that the opener orders of a real warden while the guest runs, and that are forgotten."""

from __future__ import annotations

import os
import select
import socket
from collections import Counter
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from crosvm_py.kinds.order import pack_spec
from crosvm_py.kinds.vsock import open_vsock
from crosvm_py.kinds.vsock_host import open_sockets
from crosvm_py.warden import protocol
from devices.pci.address import MAX_DEVICES
from devices.virtio.block.spec import BlockSpec
from devices.virtio.rng.device import RngSpec
from devices.virtio.vsock.common import VsockSpec
from disk.image import ImageInUseError, open_image
from sys_util.shared_page import SharedPage
from tests.crosvm_py.device_rig import PATIENCE_SECONDS, DeviceRig

if TYPE_CHECKING:
    from collections.abc import Iterator

    from crosvm_py.vmm.device_proxy import DeviceProcess

TIMES = 100


class Opener:
    """The opener of a rig, and what the vmm hears of its orders."""

    def __init__(self, rig: DeviceRig) -> None:
        self.rig = rig
        self.added: list[protocol.Added] = []
        self.page = SharedPage.create("test")
        rig.supervisor.on_added = self.added.append
        rig.supervisor.seal(rig.memory)

    def order(self, name: str, kind: str, spec: bytes, *fds: int, max_file_bytes: int = 0) -> None:
        self.rig.orders.send(protocol.Add(7, name, kind, spec, max_file_bytes), fds)

    def disk(self, path: Path, *, lock: bool = True) -> protocol.Added:
        spec = BlockSpec(str(path), lock=lock)
        fd = open_image(spec)
        size = path.stat().st_size
        self.order("data", "block", pack_spec(spec, path=""), fd, max_file_bytes=size)
        os.close(fd)
        return self.next_added()

    def next_added(self) -> protocol.Added:
        self.rig.until(lambda: bool(self.added))
        return self.added.pop()

    def refusal(self) -> str:
        select.select([self.rig.orders], [], [], PATIENCE_SECONDS)
        received = self.rig.orders.receive()
        assert received is not None
        message, _ = received
        assert isinstance(message, protocol.NotAdded)
        assert message.place == 7
        return message.reason

    def start(self, added: protocol.Added) -> tuple[DeviceProcess, str]:
        """Have the device's process made; return the device and why it is not ready."""
        reasons: list[str] = []
        device = self.rig.supervisor.add(added, self.page, reasons.append)
        self.rig.until(lambda: bool(reasons))
        return device, reasons[0]

    def remove(self, device: DeviceProcess) -> None:
        forgotten: list[bool] = []
        self.rig.supervisor.remove(device, lambda: forgotten.append(True))
        self.rig.until(lambda: bool(forgotten))


@pytest.fixture(params=[False, pytest.param(True, marks=pytest.mark.root)], ids=["bare", "jailed"])
def opener(request: pytest.FixtureRequest) -> Iterator[Opener]:
    with DeviceRig(sandbox=request.param, has_opener=True) as rig:
        opener = Opener(rig)
        yield opener
        rig.end()
        opener.page.close()


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "data.img"
    path.write_bytes(b"x" * 4096)
    return path


def held_by(pid: int) -> Counter[str]:
    """Return what the descriptors of a process are, without numbers."""
    found: Counter[str] = Counter()
    for entry in Path(f"/proc/{pid}/fd").iterdir():
        with suppress(FileNotFoundError):  # it was closed after it was listed
            found[os.readlink(entry).partition(":")[0]] += 1
    return found


def is_free(image: Path) -> bool:
    """Return whether nobody holds the lock of an image."""
    try:
        os.close(open_image(BlockSpec(str(image))))
    except ImageInUseError:
        return False
    return True


def test_ordered_disk_is_made_by_a_mould_and_serves(opener: Opener, image: Path) -> None:
    device, reason = opener.start(opener.disk(image))
    assert (reason, device.name, device.kind.name) == ("", "data", "block")
    assert Path(f"/proc/{device.pid}/comm").read_text().strip() == "data"
    queue = opener.rig.activate(device)[0]
    request = (0).to_bytes(4, "little") + bytes(4) + (1).to_bytes(8, "little")
    assert queue.request([request], [512, 1]) == (513, b"x" * 512 + b"\0")


def test_numbers_are_never_used_again(opener: Opener, image: Path) -> None:
    first = opener.disk(image, lock=False)
    opener.rig.supervisor.forget(first)
    assert opener.disk(image, lock=False).device_id > first.device_id


def test_forgotten_disk_leaves_nothing_and_its_image_is_free(opener: Opener, image: Path) -> None:
    warden = opener.rig.warden.pid
    before = held_by(warden)
    for _ in range(3):
        device, reason = opener.start(opener.disk(image))
        assert reason == ""
        pidfd = os.pidfd_open(device.pid)
        opener.remove(device)
        os.close(pidfd)
        assert not Path(f"/proc/{device.pid}").exists()
        assert is_free(image)  # the mould that made the process has ended, too
    opener.rig.until(lambda: held_by(warden) == before)
    assert opener.rig.supervisor.devices == ()
    assert not opener.rig.deaths


def test_device_that_nobody_waits_for_is_forgotten_a_hundred_times(
    opener: Opener, image: Path
) -> None:
    warden = opener.rig.warden.pid
    before = held_by(warden)
    for _ in range(TIMES):
        opener.rig.supervisor.forget(opener.disk(image, lock=False))
    opener.rig.until(lambda: held_by(warden) == before)


def test_process_that_fails_at_its_start_is_told_and_forgotten(opener: Opener, image: Path) -> None:
    fd = os.open(image, os.O_RDONLY)
    opener.order("bad", "block", pack_spec(RngSpec()), fd)
    os.close(fd)
    device, reason = opener.start(opener.next_added())
    assert reason.startswith("bad")
    opener.remove(device)
    assert not opener.rig.deaths


def vsock_order(opener: Opener, path: Path) -> protocol.Added:
    order = open_vsock(VsockSpec(5, str(path)), later=True)
    lie = order.connects._replace(uid=12345, gid=12345)  # the warden looks at the directory
    message = protocol.Add(7, "vsock", order.kind, order.spec, 0, lie)
    opener.rig.orders.send(message, order.fds)
    for fd in order.fds:
        os.close(fd)
    return opener.next_added()


def test_sockets_of_a_vsock_go_when_it_is_forgotten(opener: Opener, tmp_path: Path) -> None:
    path = tmp_path / "v"
    for _ in range(3):
        device, reason = opener.start(vsock_order(opener, path))
        assert (reason, sorted(os.listdir(tmp_path))) == ("", ["v", "v.seqpacket"])
        opener.remove(device)
        assert os.listdir(tmp_path) == []
    assert not opener.rig.deaths


def test_file_in_the_place_of_a_socket_stays(opener: Opener, tmp_path: Path) -> None:
    added = vsock_order(opener, tmp_path / "v")
    (tmp_path / "v").unlink()
    (tmp_path / "v").touch()
    opener.rig.supervisor.forget(added)
    opener.rig.until(lambda: os.listdir(tmp_path) == ["v"])


def test_sockets_go_when_their_order_is_refused(opener: Opener, tmp_path: Path) -> None:
    sockets, directory = open_sockets(str(tmp_path / "v"), replace_stale=False)
    fds = [*(bound.sock.detach() for bound in sockets), directory.fd]
    opener.order("a/b", "vsock", pack_spec(VsockSpec(5)), *fds)
    for fd in fds:
        os.close(fd)
    assert "no name of a device" in opener.refusal()
    assert os.listdir(tmp_path) == []


def test_warden_removes_no_file_but_sockets_made_for_a_vm(opener: Opener, tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(str(tmp_path / "theirs"))  # without the sticky bit
        opener.order("a/b", "rng", pack_spec(RngSpec()), sock.fileno())
    assert "no name of a device" in opener.refusal()
    assert os.listdir(tmp_path) == ["theirs"]


@pytest.mark.parametrize(
    ("name", "kind", "reason"),
    [
        ("a/b", "rng", "no name of a device"),
        (".hidden", "rng", "no name of a device"),
        ("__x", "rng", "no name of a device"),
        ("", "rng", "no name of a device"),
        ("x", "gpu", "no device of kind gpu"),
        ("x", "vsock", "0 descriptors"),
    ],
)
def test_order_for_no_device_is_refused_and_told(
    opener: Opener, name: str, kind: str, reason: str
) -> None:
    warden = opener.rig.warden.pid
    before = held_by(warden)
    for _ in range(TIMES):
        opener.order(name, kind, b"")
        assert reason in opener.refusal()
    assert held_by(warden) == before
    assert opener.added == []


def test_orders_are_bounded(opener: Opener) -> None:
    for at in range(MAX_DEVICES):
        opener.order(f"d{at}", "rng", pack_spec(RngSpec()))
        opener.next_added()
    opener.order("one-more", "rng", pack_spec(RngSpec()))
    assert "devices are there already" in opener.refusal()


def test_garbage_from_the_opener_is_no_end(opener: Opener, image: Path) -> None:
    garbage = opener.rig.orders._sock
    for payload in (b"", b"\xc1", b"\x92\x01", protocol.VMM_DENIED_HEAD, b"x" * 9000):
        if payload:
            garbage.send(payload)
    assert opener.disk(image).name == "data"
    assert not opener.rig.deaths


def test_vmm_that_sends_the_orders_of_an_opener_gets_no_device(opener: Opener) -> None:
    order = protocol.Add(7, "data", "rng", pack_spec(RngSpec()), 0)
    opener.rig.warden.channel.send(order)
    assert "warden" in opener.rig.death()
    assert opener.added == []
