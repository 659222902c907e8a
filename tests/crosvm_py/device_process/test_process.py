# SPDX-License-Identifier: BSD-3-Clause
"""Real device processes, with and without a jail: how they serve, end, and are confined."""

from __future__ import annotations

import os
import re
import signal
import struct
import time
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING

import pytest

from crosvm_py.care import DEFAULT_TIMEOUT_SECONDS
from crosvm_py.kinds.order import DeviceOrder
from crosvm_py.kinds.policies import load_run_policies
from seccomp import Policy
from sys_util.errors import VmmError
from tests.crosvm_py.device_rig import FEATURES, DeviceRig
from tests.crosvm_py.hostile_device import RecordedEvents, WatchedLock
from tests.crosvm_py.probe_device import ORDER, add_probe_kind, tell
from tests.support.driver_queue import Desc

if TYPE_CHECKING:
    from collections.abc import Iterator

    from crosvm_py.vmm.device_proxy import DeviceProcess

SECTOR = 512
VIRTIO_BLK_T_IN, VIRTIO_BLK_T_OUT = 0, 1

POLICIES = Path(__file__).parents[3] / "seccomp" / "x86_64"


@pytest.fixture(params=[pytest.param(True, marks=pytest.mark.root), False], ids=["jailed", "open"])
def rig(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[DeviceRig]:
    add_probe_kind(monkeypatch)
    with DeviceRig(sandbox=bool(request.param)) as rig:
        yield rig


@pytest.fixture
def jailed(monkeypatch: pytest.MonkeyPatch) -> Iterator[DeviceRig]:
    add_probe_kind(monkeypatch)
    with DeviceRig(sandbox=True) as rig:
        yield rig


@pytest.fixture
def disk(tmp_path: Path) -> Path:
    path = tmp_path / "disk.img"
    path.write_bytes(b"".join(bytes([0x40 + n]) * SECTOR for n in range(16)))
    return path


def header(kind: int, sector: int) -> bytes:
    return struct.pack("<IIQ", kind, 0, sector)


def events_of(device: DeviceProcess) -> RecordedEvents:
    lock = WatchedLock()
    lock.__enter__()  # the rig has a lock that nobody watches
    events = RecordedEvents(lock)
    device.events = events
    return events


# They serve


def test_block_reads_and_writes_sectors(rig: DeviceRig, disk: Path) -> None:
    device = rig.block(disk)
    assert (device.device_type, len(device.queue_sizes)) == (2, 2)
    first, second = rig.activate(device, queues=2)
    used, data = first.request([header(VIRTIO_BLK_T_IN, 3)], [SECTOR, 1])
    assert (used, data) == (SECTOR + 1, b"C" * SECTOR + b"\0")
    used, data = second.request([header(VIRTIO_BLK_T_OUT, 3), b"n" * SECTOR], [1])
    assert (used, data) == (1, b"\0")
    assert disk.read_bytes()[3 * SECTOR : 4 * SECTOR] == b"n" * SECTOR


def test_rng_gives_different_bytes_each_time(rig: DeviceRig) -> None:
    (queue,) = rig.activate(rig.rng())
    first, second = (queue.request([], [64]) for _ in range(2))
    assert first[0] == second[0] == 64
    assert first[1] != second[1]
    assert len(set(first[1])) > 16


def test_two_devices_share_the_memory(rig: DeviceRig, disk: Path) -> None:
    (blocks,) = rig.activate(rig.block(disk))
    (numbers,) = rig.activate(rig.rng())
    blocks.submit([header(VIRTIO_BLK_T_IN, 0)], [SECTOR, 1])
    numbers.submit([], [32])
    rig.until(lambda: blocks.calls > 0 and numbers.calls > 0)
    assert blocks.ring.collect()[0][2] == b"@" * SECTOR + b"\0"
    assert numbers.ring.collect()[0][1] == 32


def test_reset_stops_the_queues_until_the_next_activation(rig: DeviceRig) -> None:
    device = rig.rng()
    events = events_of(device)
    (queue,) = rig.activate(device)
    queue.request([], [8])
    device.reset()
    rig.until(lambda: events.calls == ["reset_done"])
    queue.submit([], [8])
    device.reset()
    rig.until(lambda: len(events.calls) == 2)  # whatever came of the kick, came before this
    assert queue.calls == 1
    assert queue.ring.collect() == []
    (later,) = rig.activate(device)
    assert later.request([], [8])[0] == 8


def test_queue_reset_stops_one_queue(rig: DeviceRig, disk: Path) -> None:
    device = rig.block(disk)
    events = events_of(device)
    first, second = rig.activate(device, queues=2)
    device.reset_queue(0)
    rig.until(lambda: events.calls == ["queue_reset_done 0"])
    first.submit([header(VIRTIO_BLK_T_IN, 0)], [SECTOR, 1])
    assert second.request([header(VIRTIO_BLK_T_IN, 1)], [SECTOR, 1])[1][:1] == b"A"
    assert first.calls == 0
    device.enable_queue(first.activation)
    assert first.answer()[1][:1] == b"@"  # from the ring's beginning


def test_pause_holds_requests_until_resume(rig: DeviceRig) -> None:
    device = rig.rng()
    (queue,) = rig.activate(device)
    done: list[str] = []
    device.pause(lambda: done.append("paused"))
    rig.until(lambda: done == ["paused"])
    queue.submit([], [8])
    device.write_config(0, b"x")  # answered after the kick was seen
    device.pause(lambda: done.append("again"))
    rig.until(lambda: done == ["paused", "again"])
    assert queue.calls == 0
    device.resume(lambda: done.append("resumed"))
    assert queue.answer()[0] == 8


def test_broken_ring_asks_for_a_reset_and_the_device_lives_on(rig: DeviceRig) -> None:
    device = rig.rng()
    events = events_of(device)
    (queue,) = rig.activate(device)
    queue.ring.set_avail_idx(1000)
    queue.kick()
    rig.until(lambda: events.calls == ["set_needs_reset"])
    device.reset()
    rig.until(lambda: events.calls[-1] == "reset_done")
    (later,) = rig.activate(device)
    assert later.request([], [8])[0] == 8
    assert any("rng queue 0: avail idx 1000" in line for line in rig.lines)


def test_malformed_chain_comes_back_and_the_device_lives_on(rig: DeviceRig) -> None:
    (queue,) = rig.activate(rig.rng())
    queue.ring.offer(0, {0: Desc(1 << 40, 8, 2)})
    queue.kick()
    rig.until(lambda: queue.calls == 1)
    assert queue.ring.take_used() == [(0, 0)]
    assert any("no guest memory at 0x10000000000" in line for line in rig.lines)


def test_ring_outside_memory_asks_for_a_reset(rig: DeviceRig) -> None:
    device = rig.rng()
    events = events_of(device)
    (queue,) = rig.activate(device)
    device.reset()
    device.activate(FEATURES, [queue.activation._replace(used_ring=1 << 50)])
    rig.until(lambda: "set_needs_reset" in events.calls)
    assert rig.deaths == []


# They end


@pytest.mark.parametrize(
    ("act", "call"),
    [
        ("getppid", "getppid (110)"),
        ("clone", "clone (56)"),
        ("socket", "socket (41)"),
        ("kill", "kill (62)"),
        ("execve", "execve (59)"),
        ("memfd", "memfd_create (319)"),
        ("setuid", "setuid (105)"),
        ("prctl", "prctl (157)"),
        ("mount", "mount (165)"),
        ("ioctl", "ioctl (16)"),
        ("dup", "dup2 (33)"),
    ],
)
@pytest.mark.root
def test_denied_call_ends_the_device_and_is_named(jailed: DeviceRig, act: str, call: str) -> None:
    device = jailed.start(ORDER)
    tell(device, act)
    assert jailed.death() == (
        f"probe (pid {device.pid}): killed by seccomp: {call}, policy rng_device"
    )
    assert jailed.is_gone(device)


@pytest.mark.root
def test_call_that_only_this_policy_denies_is_named(tmp_path: Path, disk: Path) -> None:
    for policy in POLICIES.iterdir():
        kept = (line for line in policy.read_text().splitlines() if "preadv" not in line)
        (tmp_path / policy.name).write_text("\n".join(kept) + "\n")
    with DeviceRig(sandbox=True, policy_directory=str(tmp_path)) as rig:
        (queue,) = rig.activate(rig.block(disk))
        queue.submit([header(VIRTIO_BLK_T_IN, 0)], [SECTOR, 1])
        assert re.search(
            r": killed by seccomp: preadv2? \(\d+\), policy block_device$", rig.death()
        )
        assert queue.ring.collect() == []


@pytest.mark.root
def test_file_that_does_not_exist_in_a_jail_is_no_end(jailed: DeviceRig) -> None:
    device = jailed.start(ORDER)
    for act, words in (("open", "No such file"), ("import", "No module named 'antigravity'")):
        tell(device, act)
        jailed.until(lambda: bool(jailed.lines))
        assert words in jailed.lines.pop()
    assert jailed.deaths == []


@pytest.mark.parametrize(
    ("act", "cause", "words"),
    [
        ("bug", "exited with status 70", "ZeroDivisionError: a bug in a device"),
        ("recursion", "exited with status 70", "RecursionError: maximum recursion depth"),
        ("guest-error", "exited with status 1: the guest is mad", ""),
        ("exit", "exited with status 3", ""),
    ],
)
def test_end_by_itself_is_told_with_the_last_words(
    rig: DeviceRig, act: str, cause: str, words: str
) -> None:
    device = rig.start(ORDER)
    tell(device, act)
    assert rig.death() == f"probe (pid {device.pid}): {cause}"
    assert words in "\n".join(rig.lines)
    assert all(line.startswith("probe: ") for line in rig.lines)


@pytest.mark.root
def test_device_that_takes_too_much_memory_ends_and_is_told(jailed: DeviceRig) -> None:
    device = jailed.start(ORDER)
    tell(device, "memory")
    assert jailed.death() == f"probe (pid {device.pid}): exited with status 70"
    assert any("Cannot allocate memory" in line for line in jailed.lines)


def test_killed_device_is_told_with_the_signal(rig: DeviceRig) -> None:
    device = rig.start(ORDER)
    os.kill(device.pid, signal.SIGKILL)
    assert rig.death() == f"probe (pid {device.pid}): killed by SIGKILL"
    assert rig.is_gone(device)


@pytest.mark.parametrize(("number", "name"), [(signal.SIGUSR1, "SIGUSR1"), (40, "signal 40")])
def test_other_signals_end_only_a_device_without_a_jail(
    monkeypatch: pytest.MonkeyPatch, number: int, name: str
) -> None:
    add_probe_kind(monkeypatch)
    with DeviceRig(sandbox=False) as rig:
        device = rig.start(ORDER)
        os.kill(device.pid, number)
        assert rig.death() == f"probe (pid {device.pid}): killed by {name}"


def test_killed_device_leaves_the_others_at_work(rig: DeviceRig, disk: Path) -> None:
    (queue,) = rig.activate(rig.block(disk))
    probe = rig.start(ORDER)
    os.kill(probe.pid, signal.SIGKILL)
    rig.death()
    assert queue.request([header(VIRTIO_BLK_T_IN, 5)], [SECTOR, 1])[1][:1] == b"E"


@pytest.mark.root
@pytest.mark.parametrize("sandbox", [True, False], ids=["jailed", "open"])
@pytest.mark.parametrize(
    ("act", "in_jail"), [("close-each", "SIGKILL"), ("close-range", "seccomp: close_range (436)")]
)
def test_device_that_closes_its_channel_and_stays_is_killed(
    monkeypatch: pytest.MonkeyPatch, act: str, in_jail: str, *, sandbox: bool
) -> None:
    add_probe_kind(monkeypatch)
    with DeviceRig(sandbox=sandbox) as rig:
        device = rig.start(ORDER)
        tell(device, act)
        assert f": killed by {in_jail if sandbox else 'SIGKILL'}" in rig.death()
        assert rig.is_gone(device)


@pytest.mark.parametrize("act", ["spin", "stop"])
def test_device_that_does_not_answer_is_ended(
    rig: DeviceRig, monkeypatch: pytest.MonkeyPatch, act: str
) -> None:
    device = rig.start(ORDER)
    if act == "stop":
        os.kill(device.pid, signal.SIGSTOP)
    tell(device, "spin")
    later = time.monotonic() + 2 * DEFAULT_TIMEOUT_SECONDS
    monkeypatch.setattr("crosvm_py.vmm.link.time", SimpleNamespace(monotonic=lambda: later))
    assert rig.death() == (
        f"probe (pid {device.pid}): ended by the vmm: "
        f"no answer within {DEFAULT_TIMEOUT_SECONDS:.10g} s"
    )
    assert rig.is_gone(device)


def test_device_that_says_too_much_neither_stops_the_vmm_nor_itself(rig: DeviceRig) -> None:
    device = rig.start(ORDER)
    tell(device, "say")
    done: list[str] = []
    device.pause(lambda: done.append("paused"))
    rig.until(lambda: done == ["paused"])
    assert rig.deaths == []
    assert len(rig.lines) < 100_000  # what did not fit was lost


def test_flooded_device_is_ended_and_no_call_waits(rig: DeviceRig) -> None:
    device = rig.start(ORDER)
    os.kill(device.pid, signal.SIGSTOP)
    for _ in range(2000):
        device.reset_queue(0)
    assert rig.death() == (
        f"probe (pid {device.pid}): ended by the vmm: the peer does not read its messages"
    )


# They do not even start


@pytest.mark.parametrize(
    ("order", "status", "reason"),
    [
        pytest.param(DeviceOrder("rng", "rng", b"\xc1", (), 0), 1, "not msgpack", id="garbage"),
        pytest.param(DeviceOrder("rng", "rng", b"", (), 0), 1, "not msgpack", id="empty"),
        pytest.param(
            DeviceOrder("rng", "rng", b"\x92\x04\x01", (), 0),
            1,
            "RngSpec with",
            id="field",
        ),
        pytest.param(DeviceOrder("rng", "block", b"\x80", (), 0), 1, "not an array", id="missing"),
    ],
)
def test_bad_spec_is_told_by_name(
    rig: DeviceRig, order: DeviceOrder, status: int, reason: str
) -> None:
    with pytest.raises(VmmError, match=rf"^rng \(pid \d+\): exited with status {status}") as caught:
        rig.start(order)
    assert reason in "\n".join([*rig.lines, str(caught.value)])


@pytest.mark.root
def test_refused_filter_is_told_and_no_device_runs_without(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    policies = load_run_policies(["rng"])
    broken = Policy("rng_device", "rng_device.policy", b"not bpf!")
    monkeypatch.setattr(
        "tests.crosvm_py.device_rig.load_run_policies",
        lambda *_, **__: policies._replace(devices={"rng_device": broken}),
    )
    with DeviceRig(sandbox=True) as rig:
        cause = "jail: load the seccomp filter rng_device: Invalid argument"
        with pytest.raises(VmmError, match=rf"^rng \(pid \d+\): exited with status 1: {cause}$"):
            rig.rng()


# The jail, seen from outside


@pytest.mark.root
def test_jailed_block_device_holds_nothing_but_its_own(jailed: DeviceRig, disk: Path) -> None:
    device = jailed.block(disk)
    folder = f"/proc/{device.pid}/fd"
    links = [os.readlink(f"{folder}/{name}").split(":")[0] for name in os.listdir(folder)]
    assert set(links) == {"/dev/null", "/memfd", str(disk), "socket", "anon_inode"}
    assert (links.count("socket"), links.count(str(disk))) == (1, 1)


@pytest.mark.root
def test_jailed_device_can_do_nothing(jailed: DeviceRig) -> None:
    device = jailed.rng()
    with open(f"/proc/{device.pid}/status") as file:
        status = dict(line.rstrip("\n").split(":\t", 1) for line in file if ":\t" in line)
    assert status["Name"] == "rng"
    assert [status[name] for name in ("Seccomp", "NoNewPrivs", "Threads")] == ["2", "1", "1"]
    assert int(status["CapEff"], 16) == int(status["CapBnd"], 16) == 0
    assert os.listdir(f"/proc/{device.pid}/root") == []
