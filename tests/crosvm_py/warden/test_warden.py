# SPDX-License-Identifier: BSD-3-Clause
"""The warden: what it makes, and what is left when it, the vmm or a device is killed."""

from __future__ import annotations

import errno
import os
import resource
import signal
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from crosvm_py.care import ALWAYS, Care
from crosvm_py.kinds.order import DeviceOrder, pack_spec
from crosvm_py.vmm import warden_proxy as host
from crosvm_py.warden import child, maker, protocol
from devices.virtio.rng.device import RngSpec
from sys_util.errors import HostError, VmmError
from sys_util.guest_memory import MemoryRegion
from tests.baremetal.vmm import has_ended
from tests.crosvm_py.device_rig import DeviceRig
from tests.crosvm_py.probe_device import ORDER, add_probe_kind
from tests.support.block_driver import is_free

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

TIDIED = "tidied"

as_both = pytest.mark.parametrize(
    "sandbox", [pytest.param(True, marks=pytest.mark.root), False], ids=["jailed", "open"]
)


@pytest.fixture
def mark(tmp_path: Path) -> Path:
    path = tmp_path / "mark"
    path.touch()  # which the warden itself cannot
    return path


@pytest.fixture(params=[pytest.param(True, marks=pytest.mark.root), False], ids=["jailed", "open"])
def rig(
    request: pytest.FixtureRequest, mark: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[DeviceRig]:
    """A rig whose clean-up makes a file."""
    add_probe_kind(monkeypatch)
    with DeviceRig(sandbox=bool(request.param), tidy=lambda: write(mark)) as rig:
        yield rig


def write(mark: Path) -> None:
    fd = os.open(mark, os.O_WRONLY)
    os.write(fd, TIDIED.encode())
    os.close(fd)


@pytest.fixture
def disk(tmp_path: Path) -> Path:
    path = tmp_path / "disk.img"
    path.write_bytes(bytes(8192))
    return path


def fds_of(pid: int) -> list[str]:
    """Return what a process has open, without the numbers of sockets and the like."""
    links = []
    for entry in Path(f"/proc/{pid}/fd").iterdir():
        with suppress(FileNotFoundError):  # the folder that we read
            links.append(os.readlink(entry).split(":[")[0])
    return sorted(links)


# Ends


@as_both
def test_killed_vmm_takes_everything_along_and_is_tidied_up(
    sandbox: bool, mark: Path, disk: Path
) -> None:
    report_read, report_write = os.pipe()
    vmm = os.fork()
    if vmm == 0:
        try:
            with DeviceRig(sandbox=sandbox, tidy=lambda: write(mark)) as rig:
                pids = [rig.block(disk).pid, rig.rng().pid, rig.warden.pid]
                os.write(report_write, " ".join(map(str, pids)).encode())
                signal.pause()
        finally:
            os._exit(1)
    pidfds = [os.pidfd_open(int(pid)) for pid in os.read(report_read, 100).split()]
    assert not is_free(disk)
    assert mark.read_text() == ""
    os.kill(vmm, signal.SIGKILL)
    os.waitpid(vmm, 0)
    assert all(has_ended(pidfd) for pidfd in pidfds)
    assert mark.read_text() == TIDIED
    assert is_free(disk)
    for fd in (report_read, report_write, *pidfds):
        os.close(fd)


def test_orderly_end_leaves_nothing(rig: DeviceRig, mark: Path, disk: Path) -> None:
    devices = [rig.block(disk), rig.rng()]
    assert not is_free(disk)
    rig.end()
    assert rig.deaths == []
    assert all(rig.is_gone(device) for device in devices)
    assert mark.read_text() == TIDIED
    assert is_free(disk)
    with pytest.raises(ChildProcessError):
        os.waitpid(rig.warden.pid, os.WNOHANG)


def test_killed_warden_takes_its_devices_along_and_is_told(rig: DeviceRig, disk: Path) -> None:
    devices = [rig.block(disk), rig.rng(), rig.start(ORDER)]
    os.kill(devices[2].pid, signal.SIGSTOP)
    os.kill(rig.warden.pid, signal.SIGKILL)
    assert rig.death() == f"warden (pid {rig.warden.pid}): ended, and its devices with it"
    assert all(rig.is_gone(device) for device in devices)
    assert is_free(disk)


def test_stopped_warden_is_killed_with_its_devices(
    rig: DeviceRig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(host, "END_SECONDS", 0.05)
    device = rig.start(ORDER)
    os.kill(device.pid, signal.SIGSTOP)
    os.kill(rig.warden.pid, signal.SIGSTOP)
    rig.end()
    assert rig.is_gone(device)
    assert rig.lines == [f"warden (pid {rig.warden.pid}): does not end, killed"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_signals_of_the_terminal_do_not_end_the_warden(rig: DeviceRig, number: int) -> None:
    os.kill(rig.warden.pid, number)  # in its first moments, too
    (queue,) = rig.activate(rig.rng())
    os.kill(rig.warden.pid, number)
    assert queue.request([], [8])[0] == 8
    assert os.getsid(rig.warden.pid) == rig.warden.pid


def test_disk_of_a_device_that_died_is_kept_until_the_end(rig: DeviceRig, disk: Path) -> None:
    device = rig.block(disk)
    os.kill(device.pid, signal.SIGKILL)
    rig.death()
    assert not is_free(disk)  # nobody else gets it before the next process
    rig.end()
    assert is_free(disk)


def test_bug_in_the_warden_ends_the_devices_with_it(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def fail(_self: object, _device_id: int) -> None:
        raise ZeroDivisionError("a bug in the warden")

    add_probe_kind(monkeypatch)
    monkeypatch.setattr("crosvm_py.warden.warden.Warden._kill", fail)
    with DeviceRig(sandbox=False) as rig:
        device = rig.start(ORDER)
        rig.warden.channel.send(protocol.Kill(0))
        assert "warden (pid" in rig.death()
        assert rig.is_gone(device)
    assert "ZeroDivisionError: a bug in the warden" in capfd.readouterr().err


# Orders


@as_both
def test_sealed_warden_makes_its_own_devices_again(sandbox: bool) -> None:
    with DeviceRig(sandbox=sandbox, care=Care(ALWAYS)) as rig:
        device = rig.rng()
        rig.supervisor.seal()
        os.kill(device.pid, signal.SIGKILL)
        rig.until(lambda: device.status.restarts == 1 and device.status.ready)


def ask_for_another(rig: DeviceRig) -> None:
    rig.supervisor.seal()
    rig.spawn(DeviceOrder("rng:1", "rng", pack_spec(RngSpec()), (), 0))


def ask_for_the_same(rig: DeviceRig) -> None:
    spawn = protocol.Spawn(0, "rng", "rng", pack_spec(RngSpec()), rig.memory.regions, 0)
    rig.warden.channel.send(spawn, [rig.memory.fd, rig.memory.fd])


def ask_again_for_one_that_serves(rig: DeviceRig) -> None:
    rig.warden.channel.send(protocol.Respawn(0), [rig.memory.fd, rig.memory.fd])


def say_what_the_warden_says(rig: DeviceRig) -> None:
    rig.warden.channel.send(protocol.Exited(0, 1, 0))


@pytest.mark.parametrize(
    ("ask", "reason"),
    [
        (ask_for_another, "it asks for device 1 while the guest runs"),
        (ask_for_the_same, "device 0 is there already"),
        (ask_again_for_one_that_serves, "device 0 is not one that has ended"),
        (say_what_the_warden_says, "message of unknown type 34"),
    ],
    ids=["another", "the-same", "again", "nonsense"],
)
def test_vmm_that_asks_for_what_it_may_not_loses_every_device(
    ask: Callable[[DeviceRig], None], reason: str, capfd: pytest.CaptureFixture[str]
) -> None:
    with DeviceRig(sandbox=False) as rig:
        device = rig.rng()
        ask(rig)
        assert "ended, and its devices with it" in rig.death()
        assert rig.is_gone(device)
    assert f"the vmm broke the protocol: {reason}" in capfd.readouterr().err


def test_group_that_refuses_a_new_limit_does_not_undo_a_resize(
    monkeypatch: pytest.MonkeyPatch, disk: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    def refuse(_self: object, _file_bytes: int) -> None:
        raise OSError(errno.EBUSY, os.strerror(errno.EBUSY))

    monkeypatch.setattr("crosvm_py.warden.warden.DeviceLimits.change", refuse)
    answers: list[tuple[int, str]] = []
    with DeviceRig(sandbox=False) as rig:
        device = rig.block(disk)
        rig.supervisor.resize(device, 16384, lambda size, reason: answers.append((size, reason)))
        rig.until(lambda: bool(answers))
        assert rig.activate(device)
    assert answers == [(16384, "")]
    assert disk.stat().st_size == 16384
    assert "block:0: its memory limit stays: Device or resource busy" in capfd.readouterr().err


def test_kill_of_an_unknown_device_is_nothing(rig: DeviceRig) -> None:
    rig.warden.channel.send(protocol.Kill(77))
    (queue,) = rig.activate(rig.rng())
    assert queue.request([], [8])[0] == 8


def test_kill_ends_one_device(rig: DeviceRig) -> None:
    first, second = rig.start(ORDER), rig.rng()
    rig.warden.channel.send(protocol.Kill(first.device_id))
    assert rig.death() == f"probe (pid {first.pid}): killed by SIGKILL"
    (queue,) = rig.activate(second)
    assert queue.request([], [8])[0] == 8


@pytest.mark.root
def test_refused_namespaces_are_told_with_the_hint(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_cgroup_fd: int) -> int:
        raise HostError("clone", "namespaces for a device", "a hint") from OSError(
            errno.EPERM, os.strerror(errno.EPERM)
        )

    monkeypatch.setattr(maker, "clone_into", refuse)
    words = r"^rng: clone namespaces for a device \(a hint\): Operation not permitted$"
    with DeviceRig(sandbox=True) as rig, pytest.raises(VmmError, match=words):
        rig.rng()


def test_warden_that_cannot_confine_itself_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse() -> None:
        raise HostError("jail:", "drop all") from OSError(errno.EPERM, os.strerror(errno.EPERM))

    monkeypatch.setattr("crosvm_py.warden.start.confine_warden", refuse)
    words = r"^warden: jail: drop all: Operation not permitted$"
    with DeviceRig(sandbox=True) as rig, pytest.raises(VmmError, match=words):
        rig.rng()


@pytest.mark.root
def test_refused_id_map_leaves_no_process(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(pid: int, _ids: object) -> None:
        raise HostError("write", f"/proc/{pid}/uid_map") from OSError(errno.EPERM, "not permitted")

    monkeypatch.setattr(child, "write_id_maps", refuse)
    with DeviceRig(sandbox=True) as rig:
        with pytest.raises(VmmError, match=r"^rng: write /proc/\d+/uid_map: not permitted$"):
            rig.rng()
        assert len(children_of(rig.warden.pid).split()) == 1  # the forge


@as_both
def test_warden_without_descriptors_tries_again_and_leaks_none(
    sandbox: bool, disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("crosvm_py.vmm.restart.MAX_DELAY_SECONDS", 0.1)
    with DeviceRig(sandbox=sandbox, care=Care(ALWAYS)) as rig:
        device = rig.block(disk)
        before = settled_fds(rig)
        with_spare = sorted([*before, "socket", "anon_inode"])
        refused = 0
        held, limit = len(before), resource.prlimit(rig.warden.pid, resource.RLIMIT_NOFILE)
        for room in range(1, 8):
            rig.lines.clear()
            resource.prlimit(rig.warden.pid, resource.RLIMIT_NOFILE, (held + room, limit[1]))
            os.kill(device.pid, signal.SIGKILL)
            rig.until(lambda: len(rig.lines) > 1)  # its end, and what came of it
            refused += any("Too many open" in line for line in rig.lines)
            resource.prlimit(rig.warden.pid, resource.RLIMIT_NOFILE, limit)
            rig.until(lambda: device.status.ready)
            rig.until(lambda: fds_of(rig.warden.pid) == with_spare)
        assert refused > 2
        assert rig.deaths == []


def children_of(pid: int) -> str:
    """Return the children of a process as the kernel lists them; a warden's first is its forge."""
    return Path(f"/proc/{pid}/task/{pid}/children").read_text()


@pytest.mark.parametrize(
    ("regions", "reason"),
    [
        pytest.param([(0, 1 << 40, 0)], "larger than the file|outside|size", id="beyond the file"),
        pytest.param([], "region", id="none"),
    ],
)
def test_memory_that_is_not_what_the_order_says_is_refused(
    rig: DeviceRig, regions: list[tuple[int, int, int]], reason: str
) -> None:
    rig.memory.regions = tuple(MemoryRegion(*region) for region in regions)
    with pytest.raises(VmmError, match=r"^rng \(pid \d+\): exited with status 1: "):
        rig.rng()


# What it holds


@as_both
def test_warden_holds_what_devices_need_and_nothing_of_the_vmm(sandbox: bool, disk: Path) -> None:
    with DeviceRig(sandbox=sandbox) as rig:
        rig.activate(rig.block(disk))
        rig.activate(rig.rng())
        stderr = os.readlink("/proc/self/fd/2").split(":[")[0]
        loop = ["anon_inode"] * 5  # its epoll and eventfd, a pidfd for each device and the forge
        held = sorted(["/dev/null", "/dev/null", stderr, "socket", "socket", *loop, str(disk)])
        rig.until(lambda: fds_of(rig.warden.pid) == held)


@as_both
def test_kept_descriptor_is_there_for_the_tidying(sandbox: bool) -> None:
    read_end, write_end = os.pipe()
    with DeviceRig(sandbox=sandbox, tidy=lambda: write_all(write_end), keep_fds=[write_end]) as rig:
        device = rig.rng()
        assert "pipe" in fds_of(rig.warden.pid)
        assert "pipe" not in fds_of(device.pid)
        os.close(write_end)
        rig.end()
        assert os.read(read_end, 100) == TIDIED.encode()
        assert os.read(read_end, 100) == b""
    os.close(read_end)


def write_all(fd: int) -> None:
    os.write(fd, TIDIED.encode())


def settled_fds(rig: DeviceRig) -> list[str]:
    """Return what the warden holds once it has made a device and closed what passed through."""
    rig.rng()
    rig.until(lambda: not any(path.startswith("/memfd") for path in fds_of(rig.warden.pid)))
    return fds_of(rig.warden.pid)


def test_warden_leaks_nothing_over_many_devices(rig: DeviceRig, disk: Path) -> None:
    before = settled_fds(rig)
    children = children_of(rig.warden.pid)
    devices = [rig.start(ORDER) for _ in range(4)] + [rig.block(disk)]
    for device in devices:
        rig.warden.channel.send(protocol.Kill(device.device_id))
    rig.until(lambda: all(device.death.status is not None for device in devices))
    kept = sorted([*before, str(disk)])
    rig.until(lambda: fds_of(rig.warden.pid) == kept)
    assert children_of(rig.warden.pid) == children


@as_both
def test_vmm_leaks_nothing_over_a_whole_life(sandbox: bool, disk: Path) -> None:
    before = fds_of(os.getpid())
    with DeviceRig(sandbox=sandbox) as rig:
        rig.activate(rig.block(disk), queues=2)
        rig.activate(rig.rng())
    assert fds_of(os.getpid()) == before


def test_bad_orders_leak_nothing(rig: DeviceRig) -> None:
    before = settled_fds(rig)
    with pytest.raises(VmmError, match=r"exited with status 1: "):
        rig.start(DeviceOrder("rng", "rng", b"\xc1", (), 0))
    rig.until(lambda: fds_of(rig.warden.pid) == before)
