# SPDX-License-Identifier: BSD-3-Clause
"""The supervisor with a warden and devices that end in every order, or hang."""

from __future__ import annotations

import os
import signal
import socket
from typing import TYPE_CHECKING

import pytest

from crosvm_py.device_process import protocol as device_protocol
from crosvm_py.kinds.order import DeviceOrder
from crosvm_py.vmm import supervisor
from crosvm_py.vmm import warden_proxy as host
from crosvm_py.warden.protocol import (
    Exited,
    Kill,
    Seal,
    Sealed,
    Spawned,
    SpawnFailed,
    WardenDenied,
)
from sys_util import child_log, wire
from sys_util.errors import VmmError
from tests.crosvm_py.fake_warden import FakeWarden

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.usefixtures("steady_fds")


@pytest.fixture
def warden() -> Iterator[FakeWarden]:
    fake = FakeWarden()
    yield fake
    fake.close()


def open_fds() -> set[str]:
    return set(os.listdir("/proc/self/fd"))


def test_devices_are_numbered_in_their_order(warden: FakeWarden) -> None:
    devices = [warden.spawn(name) for name in ("block:0", "block:1", "rng")]
    warden.supervisor.wait_ready()
    assert warden.supervisor.devices == tuple(devices)
    assert [(device.device_id, device.pid) for device in devices] == [(0, 100), (1, 101), (2, 102)]
    assert warden.deaths == []


def test_spawn_hands_the_devices_descriptors_over(warden: FakeWarden) -> None:
    read_end, write_end = os.pipe()
    before = open_fds()
    warden.spawn("rng", write_end)
    assert os.read(read_end, 1) == b""  # nobody holds the other end any more
    # Both ends of a channel, and twice the page of counters (mmap keeps one); less the pipe.
    assert len(open_fds()) == len(before) + 3
    os.close(read_end)


def test_spawn_without_a_warden_raises_and_leaks_nothing(warden: FakeWarden) -> None:
    warden.channel.close()
    read_end, write_end = os.pipe()
    with pytest.raises(VmmError, match=r"^warden \(pid \d+\): ended, and its devices with it$"):
        warden.supervisor.spawn(DeviceOrder("rng", "rng", b"", (write_end,), 0), warden.memory)
    assert os.read(read_end, 1) == b""
    os.close(read_end)


# The end of a device is logged once, when its channel is closed and its status is known.


def test_death_is_told_when_the_status_comes_last(warden: FakeWarden) -> None:
    warden.spawn("rng")
    warden.devices[0].close()
    warden.turn()
    assert warden.deaths == []
    warden.send(Exited(0, 77, -signal.SIGKILL))
    assert warden.deaths == ["rng (pid 77): killed by SIGKILL"]


def test_death_is_told_with_what_the_warden_knows(warden: FakeWarden) -> None:
    warden.spawn("rng")
    warden.devices[0].close()
    warden.turn()
    warden.send(Exited(0, 77, -signal.SIGKILL, "over its memory limit of 5 MiB"))
    assert warden.deaths == ["rng (pid 77): killed by SIGKILL: over its memory limit of 5 MiB"]


def test_death_is_told_when_the_status_comes_first(warden: FakeWarden) -> None:
    warden.spawn("rng")
    warden.send(Exited(0, 77, 159))
    assert warden.deaths == []
    warden.devices[0].send(child_log.CallDenied(257))
    warden.devices[0].close()
    warden.turn()
    assert warden.deaths == ["rng (pid 77): killed by seccomp: openat (257), policy rng_device"]


def test_only_the_first_death_is_told(warden: FakeWarden) -> None:
    for name in ("block:0", "rng"):
        warden.spawn(name)
    for device in warden.devices:
        device.close()
    warden.send(Exited(1, 78, 1), Exited(0, 77, 1))
    warden.channel.close()
    warden.turn()
    assert warden.deaths == ["rng (pid 78): exited with status 1"]


def test_last_words_are_logged_line_by_line(warden: FakeWarden, lines: list[str]) -> None:
    warden.spawn("rng")
    warden.devices[0].send(child_log.Crashed("first\nsecond \x1b[2J"))
    warden.devices[0].close()
    warden.send(Exited(0, 77, 70))
    assert lines == ["rng: first", "rng: second \\x1b[2J"]
    assert warden.deaths == ["rng (pid 77): exited with status 70"]


def test_device_that_breaks_a_rule_is_killed(warden: FakeWarden) -> None:
    warden.spawn("rng")
    warden.devices[0].send(device_protocol.Done(9))
    warden.turn()
    assert warden.take() == (Kill(0), [])
    warden.send(Exited(0, 77, -signal.SIGKILL))
    assert warden.deaths == [
        "rng (pid 77): ended by the vmm: answer to request 9, which was not asked"
    ]


def test_device_that_closes_its_channel_and_stays_is_killed(warden: FakeWarden) -> None:
    warden.spawn("rng")
    warden.devices[0].close()
    warden.turn()
    assert warden.take() == (Kill(0), [])


def test_rule_broken_when_the_warden_has_gone_is_told_as_the_wardens_end(
    warden: FakeWarden,
) -> None:
    warden.spawn("rng")
    warden.channel.close()
    warden.devices[0].send(device_protocol.Done(9))
    while not warden.deaths:
        warden.loop.run_once(5)
    assert warden.deaths == [f"warden (pid {warden.pid}): ended, and its devices with it"]


def test_nothing_is_told_of_devices_that_end_in_order(warden: FakeWarden) -> None:
    warden.spawn("rng")
    warden.end()
    assert warden.deaths == []
    assert not warden.supervisor.devices[0].is_open


# Start


def test_failed_spawn_is_told_by_name(warden: FakeWarden) -> None:
    order = DeviceOrder("block:0", "block", b"", (), 0)
    warden.supervisor.spawn(order, warden.memory)
    warden.send(SpawnFailed(0, "clone namespaces for a device: Operation not permitted"))
    with pytest.raises(VmmError, match=r"^block:0: clone namespaces for a device: Operation not"):
        warden.supervisor.wait_ready()


def test_device_that_dies_before_it_is_ready_is_told_by_name(warden: FakeWarden) -> None:
    warden.spawn("block:0")
    warden.spawn("rng", ready=False)
    warden.devices[1].send(child_log.Crashed("no memory"))
    warden.devices[1].close()
    warden.channel.send(Exited(1, 78, 1))
    with pytest.raises(VmmError, match=r"^rng \(pid 78\): exited with status 1"):
        warden.supervisor.wait_ready()


def test_devices_that_are_never_ready_are_told_by_name(
    warden: FakeWarden, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(supervisor, "START_SECONDS", 0.0)
    for name, ready in (("block:0", False), ("block:1", True), ("rng", False)):
        warden.spawn(name, ready=ready)
    with pytest.raises(VmmError, match=r"^block:0, rng: not ready after 0 s"):
        warden.supervisor.wait_ready()


def test_seal_waits_for_the_warden(warden: FakeWarden) -> None:
    warden.channel.send(Sealed())
    warden.supervisor.seal()
    assert warden.take()[0] == Seal()


def test_warden_that_does_not_seal_itself_is_told(
    warden: FakeWarden, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(supervisor, "START_SECONDS", 0.0)
    with pytest.raises(VmmError, match=r"^warden: not ready after 0 s"):
        warden.supervisor.seal()


def test_warden_that_ends_before_it_is_sealed_is_told(warden: FakeWarden) -> None:
    warden.channel.send(WardenDenied(59))
    with pytest.raises(VmmError, match=r"killed by seccomp: execve \(59\), policy warden$"):
        warden.supervisor.seal()


# The warden: its messages are checked strictly, too


@pytest.mark.parametrize(
    ("payload", "reason"),
    [
        pytest.param(b"\xc1", "not msgpack", id="garbage"),
        pytest.param(wire.encode(Kill(0)), "unknown type 2", id="the vmm's own"),
        pytest.param(wire.encode(Spawned(0, 5)), "Spawned with 0 descriptors", id="no channel"),
        pytest.param(wire.encode(Exited(9, 5, 0)), "there is no device 9", id="unknown exit"),
        pytest.param(wire.encode(SpawnFailed(9, "")), "there is no device 9", id="unknown failure"),
        pytest.param(b"", "ended, and its devices with it", id="end"),
    ],
)
def test_warden_that_breaks_a_rule_ends_the_vm(
    warden: FakeWarden, payload: bytes, reason: str
) -> None:
    warden.spawn("rng")
    warden.send_raw(payload)
    assert len(warden.deaths) == 1
    assert warden.deaths[0].startswith(f"warden (pid {warden.pid}): ")
    assert reason in warden.deaths[0]


def test_descriptor_from_the_warden_is_closed_and_ends_the_vm(warden: FakeWarden) -> None:
    before = open_fds()
    warden.channel.send(Exited(0, 5, 0), [0, 1])
    warden.turn()
    assert open_fds() == before
    assert len(warden.deaths) == 1


def test_message_with_descriptor_from_the_warden_is_closed_and_ends_the_vm(
    warden: FakeWarden,
) -> None:
    warden.spawn("rng")
    before = open_fds()
    warden.channel.send(Spawned(0, 5), [0, 1])
    warden.turn()
    assert open_fds() == before
    assert warden.deaths == [f"warden (pid {warden.pid}): Spawned with 2 descriptors"]


@pytest.mark.parametrize(
    ("device_id", "reason"), [(0, "device 0 has a process"), (1, "there is no device 1")]
)
def test_channel_that_nobody_asked_for_is_closed_and_ends_the_vm(
    warden: FakeWarden, device_id: int, reason: str
) -> None:
    warden.spawn("rng")
    before = open_fds()
    with socket.socket() as sock:
        warden.channel.send(Spawned(device_id, 5), [sock.fileno()])
    warden.turn()
    assert open_fds() == before
    assert warden.deaths == [f"warden (pid {warden.pid}): {reason}"]


def test_end_kills_a_warden_that_does_not_end(
    monkeypatch: pytest.MonkeyPatch, lines: list[str]
) -> None:
    monkeypatch.setattr(host, "END_SECONDS", 0.01)
    warden = FakeWarden(ends=False)
    warden.close()
    assert lines == [f"warden (pid {warden.pid}): does not end, killed"]
    with pytest.raises(ChildProcessError):
        os.waitpid(warden.pid, os.WNOHANG)


def test_whole_life_leaks_no_descriptor() -> None:
    before = open_fds()
    warden = FakeWarden()
    for name in ("block:0", "rng"):
        warden.spawn(name)
    warden.close()
    assert open_fds() == before
