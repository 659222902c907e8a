# SPDX-License-Identifier: BSD-3-Clause
"""A vsock device and its broker in the processes that the real warden makes, to their ends."""

from __future__ import annotations

import os
import select
import signal
import socket
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import pytest

from crosvm_py.care import ALWAYS, Care
from crosvm_py.kinds.vsock import open_vsock
from devices.virtio.vsock.common import VsockSpec
from jail.ids import FIRST_DEVICE_UID
from tests.crosvm_py.device_rig import PATIENCE_SECONDS, DeviceRig, Transport
from tests.support.vsock_rig import (
    CID,
    CREDIT_REQUEST,
    EVENT,
    HEADER,
    REQUEST,
    RESPONSE,
    RST,
    RW,
    RX,
    TX,
    Packet,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from crosvm_py.vmm.device_proxy import DeviceProcess

as_both = pytest.mark.parametrize(
    "sandbox", [pytest.param(True, marks=pytest.mark.root), False], ids=["jailed", "open"]
)
jailed = pytest.mark.parametrize("sandbox", [pytest.param(True, marks=pytest.mark.root)])

BUFFER = HEADER.size + 100


class Answer(NamedTuple):
    """A packet that the guest has received."""

    op: int
    host_port: int
    data: bytes


class Guest:
    """The driver's side of the device at ``path``, and the host's programs around it."""

    def __init__(self, rig: DeviceRig, path: Path) -> None:
        self.rig = rig
        self.path = path
        order = open_vsock(VsockSpec(CID, str(path)))
        self.bound = order.sockets
        self.device: DeviceProcess = rig.start(order)
        self.queues = rig.activate(self.device, queues=3)
        self.device.events = Transport(self.queues)
        for _ in range(8):
            self.queues[RX].submit([], [BUFFER])
            self.queues[EVENT].submit([], [4])
        self._next_port = 1000

    def listen(self, port: int, backlog: int = 8) -> socket.socket:
        sock = socket.socket(socket.AF_UNIX)
        sock.bind(f"{self.path}_{port}")
        sock.listen(backlog)
        sock.settimeout(PATIENCE_SECONDS)
        return sock

    def send(self, op: int, port: int, data: bytes = b"") -> None:
        self._send(Packet(op=op, dst_port=port, src_port=self._next_port, len=len(data), data=data))

    def _send(self, packet: Packet) -> None:
        self.queues[TX].submit([packet.header() + packet.data], [])

    def answer(self) -> Answer:
        """Return the next packet that belongs to the last connection."""
        found: list[Answer] = []

        def arrived() -> bool:
            for _, used, data in self.queues[RX].ring.collect():
                self.queues[RX].submit([], [BUFFER])
                fields = HEADER.unpack(data[: HEADER.size])
                if fields[6] == CREDIT_REQUEST:  # a new process asks how far we have read
                    self._send(Packet(src_port=fields[3], dst_port=fields[2], op=RST))
                if fields[3] == self._next_port:
                    found.append(Answer(fields[6], fields[2], data[HEADER.size : used]))
            for _ in self.queues[EVENT].ring.collect():
                self.queues[EVENT].submit([], [4])
            return bool(found)

        self.rig.until(arrived)
        return found[0]

    def connect(self, port: int) -> int:
        """Ask for a connection to ``port``; return the kind of answer."""
        self._next_port += 1
        self.send(REQUEST, port)
        return self.answer().op

    def speaks(self, port: int) -> bool:
        """Whether a connection to ``port`` carries bytes both ways."""
        with self.listen(port) as listener:
            if self.connect(port) != RESPONSE:
                return False
            with listener.accept()[0] as host:
                self.send(RW, port, b"from the guest")
                assert host.recv(100) == b"from the guest"
                host.send(b"from the host")
                data = self.answer().data
        os.unlink(f"{self.path}_{port}")
        return data == b"from the host"

    @property
    def broker(self) -> int:
        """The pid of the broker, once those of earlier processes have been reaped."""
        self.rig.until(lambda: len(brokers(self.rig)) == 1)
        (pid,) = brokers(self.rig)
        return pid

    def wait_for_restart(self, count: int) -> None:
        status = self.device.status
        self.rig.until(lambda: status.restarts == count and status.ready)


def brokers(rig: DeviceRig) -> list[int]:
    pid = rig.warden.pid
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [int(child) for child in children if name_of(child) == "vsock-broker"]


def name_of(pid: str) -> str:
    with suppress(FileNotFoundError):
        return Path(f"/proc/{pid}/comm").read_text().rstrip("\n")
    return ""


def has_ended(pidfd: int) -> bool:
    poll = select.poll()
    poll.register(pidfd, select.POLLIN)
    ended = bool(poll.poll(PATIENCE_SECONDS * 1000))
    os.close(pidfd)
    return ended


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "sockets"
    folder.mkdir()
    return folder


@pytest.fixture
def rig(sandbox: bool) -> Iterator[DeviceRig]:
    with DeviceRig(sandbox=sandbox, care=Care(ALWAYS)) as rig:
        yield rig


@pytest.fixture
def guest(rig: DeviceRig, folder: Path) -> Iterator[Guest]:
    guest = Guest(rig, folder / "v")
    yield guest
    for bound in guest.bound:
        bound.unlink()


# What it reaches


@as_both
def test_guest_reaches_listeners_of_the_host_and_nothing_else(guest: Guest) -> None:
    assert guest.speaks(52)
    assert guest.connect(53) == RST
    (guest.path.parent / "agent").symlink_to("v")
    (guest.path.parent / "v_54").symlink_to("agent")
    assert guest.connect(54) == RST
    assert guest.speaks(0xFFFF_FFFF)


@as_both
def test_directory_that_was_moved_is_still_the_one(guest: Guest) -> None:
    old = guest.path.parent
    moved = old.rename(old.parent / "elsewhere")
    old.mkdir()
    with guest.listen(52):
        assert guest.connect(52) == RST
    guest.path = moved / "v"
    assert guest.speaks(52)
    for bound in guest.bound:
        (moved / Path(bound.path).name).unlink()


@as_both
def test_sockets_of_another_vm_are_no_ports(rig: DeviceRig, folder: Path) -> None:
    """``vm_2`` would be port 2 of the VM at ``vm``."""
    one, two = Guest(rig, folder / "vm"), Guest(rig, folder / "vm_2")
    assert one.connect(2) == RST
    assert two.speaks(3)
    assert one.speaks(3)
    with socket.socket(socket.AF_UNIX) as host:
        host.settimeout(PATIENCE_SECONDS)
        host.connect(str(folder / "vm_2"))
        host.send(b"CONNECT 80\n")
        rig.until(lambda: any(used for _, used, _ in two.queues[RX].ring.collect()))
    for bound in (*one.bound, *two.bound):
        bound.unlink()


# The jails


@jailed
@pytest.mark.skipif(os.geteuid() != 0, reason="only root may look into what is not dumpable")
def test_device_has_an_empty_root_and_the_broker_one_directory(guest: Guest) -> None:
    (guest.path.parent.parent / "secret").write_text("outside")
    assert guest.speaks(52)  # so both have loaded their filters
    assert os.listdir(f"/proc/{guest.device.pid}/root") == []
    assert sorted(os.listdir(f"/proc/{guest.broker}/root")) == ["v", "v.seqpacket"]
    mounts = Path(f"/proc/{guest.broker}/mountinfo").read_text()
    assert mounts == ""  # its root is in none of its own
    status = Path(f"/proc/{guest.broker}/status").read_text()
    for line in ("CapEff:\t0000000000000000", "CapBnd:\t0000000000000000", "Seccomp:\t2"):
        assert line in status
    assert "NoNewPrivs:\t1" in status
    links = [os.readlink(entry) for entry in Path(f"/proc/{guest.broker}/fd").iterdir()]
    assert sorted(link.split(":[")[0] for link in links) == [*["/dev/null"] * 3, "socket"]


@jailed
@pytest.mark.skipif(os.geteuid() != 0, reason="an ordinary user has no other uid to give")
@pytest.mark.parametrize("owner", [0, 61_000])
def test_broker_is_the_owner_of_the_directory_and_the_device_is_nobody(
    rig: DeviceRig, folder: Path, owner: int
) -> None:
    os.chown(folder, owner, owner)
    folder.chmod(0o700)
    guest = Guest(rig, folder / "v")
    with guest.listen(52) as listener:
        os.chown(folder / "v_52", owner, owner)
        (folder / "v_52").chmod(0o600)
        assert guest.connect(52) == RESPONSE
        with listener.accept()[0] as host:
            credentials = host.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
        (folder / "v_53").touch()
    assert credentials[4:] == owner.to_bytes(4, "little") * 2
    assert os.stat(f"/proc/{guest.device.pid}").st_uid == FIRST_DEVICE_UID + guest.device.pid
    status = Path(f"/proc/{guest.device.pid}/status").read_text()
    assert f"Uid:\t{FIRST_DEVICE_UID + guest.device.pid}\t" in status
    for bound in guest.bound:
        bound.unlink()


@jailed
@pytest.mark.skipif(os.geteuid() != 0, reason="an ordinary user has no other uid to give")
def test_broker_reaches_nothing_that_the_owner_could_not(rig: DeviceRig, folder: Path) -> None:
    os.chown(folder, 61_000, 61_000)
    guest = Guest(rig, folder / "v")
    with guest.listen(52):  # root's, and for root alone
        (folder / "v_52").chmod(0o600)
        assert guest.connect(52) == RST
    for bound in guest.bound:
        bound.unlink()


# Its end


@as_both
def test_killed_broker_is_named_and_made_again_with_its_device(
    sandbox: bool, folder: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    with DeviceRig(sandbox=sandbox, care=Care(ALWAYS)) as rig:
        guest = Guest(rig, folder / "v")
        broker, device = guest.broker, guest.device.pid
        os.kill(broker, signal.SIGKILL)
        guest.wait_for_restart(1)
        assert guest.device.pid != device
        assert guest.broker != broker
        assert guest.speaks(52)
    reason = "exited with status 1: the broker of its connections has ended"
    assert any(line.endswith(reason) for line in rig.lines)
    said = capfd.readouterr().err
    assert f"vsock: its broker (pid {broker}): killed by signal 9" in said


@as_both
def test_killed_device_takes_its_broker_along_without_a_word(
    sandbox: bool, folder: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    with DeviceRig(sandbox=sandbox, care=Care(ALWAYS)) as rig:
        guest = Guest(rig, folder / "v")
        for count in range(1, 4):
            pidfd = os.pidfd_open(guest.broker)
            os.kill(guest.device.pid, signal.SIGKILL)
            guest.wait_for_restart(count)
            assert has_ended(pidfd)
            assert guest.broker
            assert guest.speaks(52)
    assert "broker" not in capfd.readouterr().err


@as_both
@pytest.mark.slow
def test_broker_that_hangs_holds_up_nobody(guest: Guest) -> None:
    rng = guest.rig.rng()
    (queue,) = guest.rig.activate(rng)
    rng.events = Transport([queue])
    stopped = guest.broker
    os.kill(stopped, signal.SIGSTOP)
    guest._next_port += 1
    guest.send(REQUEST, 52)
    os.kill(rng.pid, signal.SIGKILL)
    guest.rig.until(lambda: rng.status.restarts == 1 and rng.status.ready)
    queue.submit([], [8])
    guest.rig.until(lambda: bool(queue.ring.collect()))
    assert guest.answer().op == RST
    pidfd = os.pidfd_open(stopped)
    os.kill(guest.device.pid, signal.SIGKILL)
    guest.wait_for_restart(1)
    assert has_ended(pidfd)
    assert guest.speaks(52)


@as_both
@pytest.mark.parametrize("stop", [False, True], ids=["running", "stopped"])
def test_broker_has_ended_before_the_warden(guest: Guest, stop: bool) -> None:
    pidfd = os.pidfd_open(guest.broker)
    if stop:
        signal.pidfd_send_signal(pidfd, signal.SIGSTOP)
    guest.rig.end()
    assert select.select([pidfd], [], [], 0)[0]
    os.close(pidfd)


@as_both
def test_broker_ends_with_the_warden(guest: Guest) -> None:
    pidfd = os.pidfd_open(guest.broker)
    signal.pidfd_send_signal(pidfd, signal.SIGSTOP)
    os.kill(guest.rig.warden.pid, signal.SIGKILL)
    assert has_ended(pidfd)
    guest.rig.death()


@jailed
def test_denied_call_of_the_broker_is_reported(
    sandbox: bool, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real: Callable[..., int] = os.lstat  # type: ignore[assignment]  # it returns a stat_result
    monkeypatch.setattr(os, "lstat", lambda path: real(path) if path != b"v_52" else os.dup(0))
    with DeviceRig(sandbox=sandbox, care=Care(ALWAYS)) as rig:
        guest = Guest(rig, folder / "v")
        guest.send(REQUEST, 52)
        guest.wait_for_restart(1)
        assert "broker: killed by seccomp: system call 72" in " ".join(rig.lines)
        for bound in guest.bound:
            bound.unlink()
