# SPDX-License-Identifier: BSD-3-Clause
"""Restarts of devices by a forge and moulds, and what happens when those end."""

from __future__ import annotations

import os
import signal
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from crosvm_py.care import ALWAYS, Care
from crosvm_py.warden import forge
from tests.crosvm_py.device_rig import DeviceRig, Transport
from tests.support.layout import anonymous_kib, has_nothing_in_common, layout_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from crosvm_py.vmm.device_proxy import DeviceProcess

FORGE = "crosvm-forge"
MOULD = "crosvm-mould"


@pytest.fixture(params=[pytest.param(True, marks=pytest.mark.root), False], ids=["jailed", "open"])
def sandbox(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    monkeypatch.setattr("crosvm_py.vmm.restart.MAX_DELAY_SECONDS", 0.1)
    return bool(request.param)


@pytest.fixture
def rig(sandbox: bool) -> Iterator[DeviceRig]:
    with DeviceRig(sandbox=sandbox, care=Care(ALWAYS)) as rig:
        yield rig


def children(rig: DeviceRig, name: str) -> list[int]:
    """Return the children of the warden with this name."""
    pid = rig.warden.pid
    found = []
    for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
        try:
            if Path(f"/proc/{child}/comm").read_text().strip() == name:
                found.append(int(child))
        except OSError:  # it has ended
            continue
    return found


def forge_of(rig: DeviceRig) -> int:
    """Wait until the forge has its name and return its pid."""
    rig.until(lambda: len(children(rig, FORGE)) == 1)
    return children(rig, FORGE)[0]


def start(rig: DeviceRig) -> DeviceProcess:
    """Start an rng whose next processes serve the same queue."""
    device = rig.rng()
    queues = rig.activate(device)
    device.events = Transport(queues)
    assert queues[0].request([], [8])[0] == 8
    return device


def crash(rig: DeviceRig, device: DeviceProcess) -> None:
    """Kill a device process and wait for the next one."""
    restarts = device.status.restarts
    os.kill(device.pid, signal.SIGKILL)
    rig.until(lambda: device.status.restarts > restarts and device.status.ready)


def restart(rig: DeviceRig, device: DeviceProcess) -> str:
    answers: list[str] = []
    rig.supervisor.restart(device, answers.append)
    rig.until(lambda: bool(answers))
    return answers[0]


def spare(rig: DeviceRig) -> int:
    """Wait for the spare and return its pid."""
    rig.until(lambda: len(children(rig, MOULD)) == 1)
    return children(rig, MOULD)[0]


def serves(rig: DeviceRig, device: DeviceProcess) -> bool:
    (queue,) = rig.activate(device)
    return queue.request([], [8])[0] == 8


# What an attacker knows


def test_first_processes_share_a_layout_and_replacements_have_their_own(rig: DeviceRig) -> None:
    """The first case is the limit that SECURITY.md states for a VM without a crash so far."""
    device = start(rig)
    warden, first = layout_of(rig.warden.pid), layout_of(device.pid)
    assert not has_nothing_in_common(warden, first)
    seen = [warden]
    for _ in range(3):
        crash(rig, device)
        now = layout_of(device.pid)
        assert all(has_nothing_in_common(before, now) for before in seen)
        seen.append(now)
    assert restart(rig, device) == ""
    assert all(has_nothing_in_common(before, layout_of(device.pid)) for before in seen)


def test_replacement_has_the_environment_of_nobody(
    sandbox: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONSTARTUP", "/nowhere")
    with DeviceRig(sandbox=sandbox, care=Care(ALWAYS)) as rig:
        device = start(rig)
        crash(rig, device)
        assert Path(f"/proc/{device.pid}/environ").read_bytes().strip(b"\0") == b""


# The spare


def test_spare_is_kept_after_a_crash_and_there_is_one(rig: DeviceRig) -> None:
    devices = [start(rig), rig.rng()]
    assert children(rig, MOULD) == []
    for device in devices:
        crash(rig, device)
    first = spare(rig)
    crash(rig, devices[0])
    rig.until(lambda: children(rig, MOULD) not in ([], [first]))
    assert spare(rig) != first
    assert serves(rig, devices[1])


def test_restart_on_purpose_replaces_the_spare_and_leaves_none_where_there_was_none(
    rig: DeviceRig,
) -> None:
    device = start(rig)
    pid = device.pid
    assert restart(rig, device) == ""
    assert device.pid != pid
    rig.until(lambda: children(rig, MOULD) == [])
    crash(rig, device)
    old = spare(rig)
    assert restart(rig, device) == ""
    rig.until(lambda: old not in children(rig, MOULD))


def test_killed_spare_costs_nothing_but_time(rig: DeviceRig) -> None:
    device = start(rig)
    crash(rig, device)
    for number in (signal.SIGKILL, signal.SIGSTOP):
        killed = spare(rig)
        os.kill(killed, number)
        if number == signal.SIGKILL:
            rig.until(lambda killed=killed: killed not in children(rig, MOULD))  # type: ignore[misc]
        else:
            os.kill(spare(rig), signal.SIGKILL)
        crash(rig, device)
    assert rig.deaths == []


# What goes wrong


def test_warden_without_its_forge_says_so_and_the_others_serve(
    sandbox: bool, capfd: pytest.CaptureFixture[str]
) -> None:
    words = "rng: no new process: the forge was killed by signal 9"
    with DeviceRig(sandbox=sandbox, care=Care(ALWAYS)) as rig:
        device, other = start(rig), rig.rng()
        pid = forge_of(rig)
        os.kill(pid, signal.SIGKILL)
        rig.until(lambda: children(rig, FORGE) == [])
        assert restart(rig, device) == words
        os.kill(device.pid, signal.SIGKILL)
        rig.until(lambda: rig.lines.count(words) > 1)
        assert f"forge (pid {pid}): was killed by signal 9" in capfd.readouterr().err
        assert serves(rig, other)
        assert rig.deaths == []


@pytest.mark.parametrize(
    ("boot", "words"),
    [
        pytest.param(
            forge.BOOT.replace("crosvm_py.warden.mould", "crosvm_py.warden.away"),
            "no new process: ModuleNotFoundError: No module named 'crosvm_py.warden.away'",
            id="import",
        ),
        pytest.param(
            forge.BOOT.replace("gc.disable()", "gc.disable("), "no new process: its ", id="syntax"
        ),
        pytest.param("import os; os._exit(9)", "its interpreter exited with status 9", id="exit"),
        pytest.param(
            forge.BOOT.replace("\nbe_mould", "\nimport devices.virtio.rng as r; r.x()\nbe_mould"),
            "its interpreter exited with status 1",
            id="bug",
        ),
        pytest.param(
            "import sys, crosvm_py.kinds.kind as t\n"
            "def broken(self): raise SyntaxError('half an update')\n"
            "t.DeviceKind.preload = broken\n" + forge.BOOT,
            "no new process: SyntaxError: half an update",
            id="device",
        ),
    ],
)
def test_broken_code_is_one_line_and_leaves_the_process_that_there_is(
    sandbox: bool, boot: str, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if "kinds.kind" in boot:
        boot = boot.replace("import sys, ", "import sys; sys.path[:] = sys.argv[3:]; import ", 1)
    monkeypatch.setattr(forge, "BOOT", boot)
    with DeviceRig(sandbox=sandbox, care=Care(ALWAYS)) as rig:
        device = start(rig)
        pid = device.pid
        assert words in restart(rig, device)
        assert sum(words in line for line in rig.lines) == 1
        assert (device.pid, device.status.word) == (pid, "active")
        os.kill(pid, signal.SIGKILL)
        rig.until(lambda: sum(words in line for line in rig.lines) >= 3)
        assert rig.deaths == []


def test_mould_that_aborts_is_said_to_have_aborted(
    sandbox: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    boot = "import sys; sys.path[:] = sys.argv[3:]; import crosvm_py.warden.mould as m\n"
    boot += "m.Channel.send = lambda *a: __import__('os').abort()\n"  # under its filters
    monkeypatch.setattr(forge, "BOOT", boot + forge.BOOT)
    with DeviceRig(sandbox=sandbox, care=Care(ALWAYS)) as rig:
        device = start(rig)
        end = "aborted (abort(3) calls tgkill" if sandbox else "was killed by signal 6"
        assert f"its interpreter {end}" in restart(rig, device)
        assert rig.deaths == []


def test_moulds_start_one_after_the_other_on_one_processor(
    sandbox: bool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """If all devices of a VM end at once, their moulds must not make each other late."""
    notes = tmp_path / "notes"
    os.mkfifo(notes)
    tell = f"import os, time; fd = os.open({str(notes)!r}, os.O_WRONLY); os.write(fd, b'+')\n"
    done = "time.sleep(0.05); os.write(fd, b'-'); os.close(fd)\n"
    monkeypatch.setattr(forge, "BOOT", tell + done + forge.BOOT)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _pid: {0})
    reader = os.open(notes, os.O_RDONLY | os.O_NONBLOCK)
    with DeviceRig(sandbox=sandbox, care=Care(ALWAYS)) as rig:
        devices = [start(rig), *(rig.rng() for _ in range(3))]
        for device in devices:
            os.kill(device.pid, signal.SIGKILL)
        rig.until(lambda: all(one.status.restarts and one.status.ready for one in devices))
        found = os.read(reader, 1000)
    os.close(reader)
    assert found.startswith(b"+-" * 3)
    assert b"++" not in found


def test_late_moulds_get_more_time(sandbox: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(forge, "BOOT", "import time; time.sleep(0.6)\n" + forge.BOOT)
    monkeypatch.setattr("crosvm_py.warden.foundry.MOULD_SECONDS", 0.3)
    with DeviceRig(sandbox=sandbox, care=Care(ALWAYS)) as rig:
        device = start(rig)
        crash(rig, device)
        assert any("its interpreter is not ready after" in line for line in rig.lines)


def test_mould_that_hangs_is_given_up(sandbox: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(forge, "BOOT", "import time; time.sleep(3600)")
    monkeypatch.setattr("crosvm_py.warden.foundry.MOULD_SECONDS", 0.2)
    with DeviceRig(sandbox=sandbox, care=Care(ALWAYS)) as rig:
        device, other = start(rig), rig.rng()
        os.kill(device.pid, signal.SIGKILL)
        words = "rng: no new process: its interpreter is not ready after 0 s"
        rig.until(lambda: rig.lines.count(words) > 1)
        assert serves(rig, other)
        rig.until(lambda: len(children(rig, "python3")) < 2)


def test_mould_that_is_killed_at_any_moment_is_tried_again(rig: DeviceRig) -> None:
    device = start(rig)
    forge_pid = forge_of(rig)
    killed = 0
    for turns in range(12):
        restarts = device.status.restarts
        os.kill(device.pid, signal.SIGKILL)
        rig.until(lambda: bool(moulds(rig, forge_pid)))
        for _ in range(turns):
            rig.loop.run_once(0.003)
        for pid in moulds(rig, forge_pid):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
                killed += 1
        rig.until(lambda before=restarts: device.status.restarts > before)  # type: ignore[misc]
        rig.until(lambda: device.status.ready)
    assert killed
    assert rig.deaths == []
    rig.until(lambda: len(all_children(rig)) <= 3)  # the forge, the device, a spare


def all_children(rig: DeviceRig) -> list[int]:
    pid = rig.warden.pid
    return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def moulds(rig: DeviceRig, forge_pid: int) -> list[int]:
    """Return moulds also before they have their name."""
    return [pid for pid in all_children(rig) if pid != forge_pid and is_ours(pid)]


def is_ours(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/comm").read_text().strip() in (MOULD, FORGE, "python3.11", "exe")
    except OSError:
        return False


# What it costs


def test_warden_does_not_grow(rig: DeviceRig) -> None:
    """``python -m tests.endurance renewals`` does it a thousand times."""
    device = start(rig)
    for _ in range(3):
        assert restart(rig, device) == ""
    before = anonymous_kib(rig.warden.pid)
    for _ in range(12):
        assert restart(rig, device) == ""
    assert anonymous_kib(rig.warden.pid) - before < 256


@pytest.mark.parametrize("end", [DeviceRig.end, lambda rig: os.kill(rig.warden.pid, 9)])
def test_nothing_is_left_of_forge_and_moulds(
    rig: DeviceRig, end: Callable[[DeviceRig], None]
) -> None:
    device = start(rig)
    crash(rig, device)
    spare(rig)
    pidfds = [os.pidfd_open(pid) for pid in all_children(rig)]
    end(rig)
    for pidfd in pidfds:
        rig.until(lambda pidfd=pidfd: has_ended(pidfd))  # type: ignore[misc]
        os.close(pidfd)


def has_ended(pidfd: int) -> bool:
    import select

    poll = select.poll()
    poll.register(pidfd, select.POLLIN)
    return bool(poll.poll(0))
