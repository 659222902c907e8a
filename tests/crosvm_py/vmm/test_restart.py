# SPDX-License-Identifier: BSD-3-Clause
"""Restarts of devices: when, how often, and what the next process is told."""

from __future__ import annotations

import os
import signal
from typing import TYPE_CHECKING

import pytest

from crosvm_py.care import ALWAYS, DEFAULT_LIMIT, NEVER
from crosvm_py.device_process import protocol as device_protocol
from crosvm_py.vmm import supervisor
from crosvm_py.vmm.restart import HEALTHY_SECONDS, MAX_DELAY_SECONDS, RestartBudget
from crosvm_py.warden.protocol import Exited, Kill, Renew, Renewed, Respawn, SpawnFailed
from devices.virtio.commands import Refused
from sys_util.errors import ConfigError
from sys_util.facts import replace
from tests.crosvm_py.fake_warden import FakeWarden
from tests.crosvm_py.hostile_device import (
    CONFIG,
    HostileDevice,
    RecordedEvents,
    WatchedLock,
    queue,
)
from tests.crosvm_py.hostile_device import READY as BLOCK_READY
from tests.support.commands import set_limits

if TYPE_CHECKING:
    from collections.abc import Iterator

    from crosvm_py.care import RestartLimit
    from sys_util.wire import Message


# How long a device waits for its next process.


def test_first_end_is_made_good_at_once_and_the_next_ones_later() -> None:
    budget = RestartBudget(ALWAYS)
    delays = [budget.next_delay(0.0) for _ in range(20)]
    assert delays[:4] == [0.0, 0.05, 0.1, 0.2]
    assert delays[-1] == MAX_DELAY_SECONDS


def test_process_that_lived_a_while_makes_up_for_the_ones_before() -> None:
    budget = RestartBudget(ALWAYS)
    for _ in range(5):
        budget.next_delay(0.0)
    budget.ready(10.0)
    assert budget.next_delay(10.0 + HEALTHY_SECONDS / 2) not in (0.0, None)
    budget.ready(20.0)
    assert budget.next_delay(20.0 + HEALTHY_SECONDS) == 0.0


def test_process_that_is_never_ready_makes_up_for_nothing_however_long_it_takes() -> None:
    """Only a process that was ready resets the delay, not the time since one was ready."""
    budget = RestartBudget(ALWAYS)
    budget.ready(0.0)
    delays = [budget.next_delay(1000.0 * turn) for turn in range(1, 12)]
    assert delays == [0.0, 0.05, 0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 5.0, 5.0, 5.0]


@pytest.mark.parametrize("limit", [NEVER, 1, 3])
def test_restarts_are_bounded_however_long_each_process_lived(limit: int) -> None:
    budget = RestartBudget(limit)
    for turn in range(limit):
        budget.ready(100.0 * turn)
        assert budget.next_delay(100.0 * (turn + 1)) == 0.0
    assert budget.next_delay(1e9) is None
    assert budget.describe() == {NEVER: "0 times", 1: "once", 3: "3 times"}[limit]


def test_restarts_are_bounded_in_any_minute() -> None:
    budget = RestartBudget(DEFAULT_LIMIT)
    for turn in range(1000):  # nearly ten a minute, for ever
        budget.ready(6.25 * turn)
        assert budget.next_delay(6.25 * turn + 6) == 0.0
    now = 6250.0 + 60.0
    for _ in range(DEFAULT_LIMIT.restarts):
        assert budget.next_delay(now) is not None
    assert budget.next_delay(now + 59.9) is None
    assert budget.describe() == "10 times within 60 s"
    assert budget.next_delay(now + 60.0) is not None


# The supervisor, a warden that is a socket, and devices that are.


class Rig:
    """One rng device that a supervisor restarts."""

    def __init__(self, restarts: RestartLimit = ALWAYS) -> None:
        self.warden = FakeWarden(restarts=restarts)
        self.device = self.warden.spawn("rng")
        self.warden.supervisor.wait_ready()
        self.events = RecordedEvents(WatchedLock())
        self.device.events = self.events

    def die(self, status: int = -signal.SIGKILL) -> None:
        """End the process, and tell the vmm."""
        self.warden.devices[0].close()
        self.warden.turn()
        assert self.warden.take()[0] == Kill(0)
        self.warden.send(Exited(0, self.device.pid, status))

    def come_again(self) -> Message:
        """Make the next process; return the request for it."""
        self.wait_for_request()
        return self.warden.make(0)

    def wait_for_request(self) -> None:
        while not self.warden.asked:
            self.warden.loop.run_once(5)

    def requests(self) -> list[str]:
        """Return the requests that the present process has got."""
        found = []
        while received := self.warden.devices[0].receive():
            for fd in received[1]:
                os.close(fd)
            found.append(type(received[0]).__name__)
        return found


@pytest.fixture
def rig(lines: list[str]) -> Iterator[Rig]:
    rig = Rig()
    yield rig
    rig.warden.close()


def test_killed_device_is_named_and_comes_again(rig: Rig, lines: list[str]) -> None:
    rig.die()
    assert rig.device.status.word == "restarting"
    assert rig.come_again() == Respawn(0)
    assert rig.events.calls == ["!reactivate rng"]
    assert (rig.device.status.word, rig.device.status.restarts) == ("idle", 1)
    assert lines[0] == "rng (pid 100): killed by SIGKILL"
    assert lines[1].startswith("rng: process 100 goes on after ")
    assert rig.warden.deaths == []


def test_next_process_is_made_when_the_last_one_is_gone_and_not_before(rig: Rig) -> None:
    rig.warden.devices[0].close()
    rig.warden.turn()
    assert rig.warden.take()[0] == Kill(0)
    rig.warden.turn()
    assert not rig.warden.asked
    rig.warden.send(Exited(0, 100, 0))
    assert rig.warden.asked


def test_process_that_cannot_be_made_is_tried_again(rig: Rig, lines: list[str]) -> None:
    rig.die()
    assert rig.warden.take()[0] == Respawn(0)
    rig.warden.send(SpawnFailed(0, "clone: Cannot allocate memory"))
    assert lines[-1] == "rng: clone: Cannot allocate memory"
    assert rig.come_again() == Respawn(0)
    assert rig.device.status.word == "idle"


def test_process_that_could_not_be_made_has_no_deadline(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(supervisor, "START_SECONDS", 0.2)
    rig.die()
    assert rig.warden.take()[0] == Respawn(0)
    rig.warden.send(SpawnFailed(0, "no"))
    rig.come_again()
    late: list[bool] = []
    rig.warden.loop.call_later(0.4, lambda: late.append(True))
    while not late:
        rig.warden.loop.run_once(1)
    assert rig.device.status.word == "idle"


def test_process_that_is_not_the_device_of_before_is_ended(rig: Rig, lines: list[str]) -> None:
    rig.die()
    rig.wait_for_request()
    rig.warden.make(0, device_protocol.Ready(4, 1, (256,), b""))
    assert rig.warden.take()[0] == Kill(0)
    rig.warden.send(Exited(0, 100, -9))
    assert lines[-1] == "rng (pid 100): ended by the vmm: not the device that its predecessor was"
    rig.come_again()
    assert rig.events.calls == ["!reactivate rng"]


def test_device_beyond_its_restarts_is_lost_to_the_guest_and_not_the_vm(lines: list[str]) -> None:
    rig = Rig(restarts=1)
    rig.die()
    rig.come_again()
    rig.die()
    assert rig.events.calls == ["!reactivate rng", "!backend_lost"]
    assert rig.device.status.word == "dead"
    assert lines[-1] == "rng: is lost to the guest: restarted once (--device-restart)"
    assert (rig.warden.asked, rig.warden.deaths) == (False, [])
    with pytest.raises(ConfigError, match=r"no process that serves now \(dead\)"):
        rig.warden.supervisor.restart(rig.device, lambda _: None)
    rig.warden.close()


def test_next_process_starts_paused_in_a_suspended_vm(rig: Rig) -> None:
    done: list[str] = []
    rig.device.pause(lambda: done.append("paused"))
    rig.die()
    assert done == ["paused"]
    rig.device.resume(lambda: done.append("resumed"))
    rig.device.pause(lambda: done.append("paused"))
    assert done == ["paused", "resumed", "paused"]
    rig.come_again()
    assert rig.requests() == ["Pause"]
    assert rig.device.status.word == "paused"


def test_nobody_waits_for_an_answer_of_the_dead(rig: Rig) -> None:
    answers: list[object] = []
    rig.device.command(set_limits(), answers.append)
    rig.die()
    rig.device.command(set_limits(), answers.append)
    assert answers == [Refused("the device process has ended")] * 2


def test_restart_on_purpose_reads_the_code_first_and_is_answered_when_it_serves(
    rig: Rig, lines: list[str]
) -> None:
    answers: list[str] = []
    rig.warden.supervisor.restart(rig.device, answers.append)
    with pytest.raises(ConfigError, match="another restart is under way"):
        rig.warden.supervisor.restart(rig.device, answers.append)
    assert rig.warden.take()[0] == Renew(0)
    assert rig.requests() == []
    rig.warden.send(Renewed(0, ""))
    received = rig.warden.devices[0].receive()
    assert received is not None
    assert isinstance(received[0], device_protocol.Pause)
    rig.warden.devices[0].send(device_protocol.Done(received[0].request_id))
    rig.warden.turn()
    assert rig.warden.take()[0] == Kill(0)
    rig.warden.send(Exited(0, 100, 0))
    assert answers == []
    assert rig.come_again() == Respawn(0)
    assert answers == [""]
    assert lines[0] == "rng (pid 100): ended to be restarted"


def test_code_that_cannot_be_read_is_an_answer_and_the_process_serves_on(
    rig: Rig, lines: list[str]
) -> None:
    answers: list[str] = []
    rig.warden.supervisor.restart(rig.device, answers.append)
    assert rig.warden.take()[0] == Renew(0)
    rig.warden.send(Renewed(0, "no new process: SyntaxError: half an update"))
    assert answers == ["rng: no new process: SyntaxError: half an update"]
    assert lines == ["rng: is not restarted: no new process: SyntaxError: half an update"]
    assert (rig.requests(), rig.device.status.word) == ([], "idle")
    rig.warden.supervisor.restart(rig.device, answers.append)  # it may be whole by now
    assert rig.warden.take()[0] == Renew(0)


def test_device_that_ends_while_its_code_is_read_is_restarted_once(rig: Rig) -> None:
    answers: list[str] = []
    rig.warden.supervisor.restart(rig.device, answers.append)
    assert rig.warden.take()[0] == Renew(0)
    rig.die()
    assert answers == ["rng (pid 100): killed by SIGKILL"]
    rig.warden.send(Renewed(0, ""))
    assert rig.come_again() == Respawn(0)
    rig.warden.turn()
    assert not rig.warden.asked


def test_restart_is_refused_until_the_warden_has_answered_the_one_before(rig: Rig) -> None:
    """The warden treats a second ``Renew`` as a broken protocol, and ends the VM."""
    answers: list[str] = []
    rig.warden.supervisor.restart(rig.device, answers.append)
    assert rig.warden.take()[0] == Renew(0)
    rig.die()
    assert rig.come_again() == Respawn(0)
    with pytest.raises(ConfigError, match="another restart is under way"):
        rig.warden.supervisor.restart(rig.device, answers.append)
    assert not rig.warden.asked
    rig.warden.send(Renewed(0, ""))
    rig.warden.supervisor.restart(rig.device, answers.append)
    assert rig.warden.take()[0] == Renew(0)
    assert answers == ["rng (pid 100): killed by SIGKILL"]


# What the next process is told, message by message.


def write_config(request: int, *writes: tuple[int, bytes]) -> device_protocol.WriteConfig:
    return device_protocol.WriteConfig(
        request, tuple(device_protocol.ConfigWrite(*write) for write in writes)
    )


def reattach(device: HostileDevice) -> None:
    device.sock.close()
    device.turn()
    device.attach()


def test_calls_between_two_processes_send_nothing_and_the_writes_follow(
    device: HostileDevice,
) -> None:
    device.host.write_config(1, b"a")  # not answered, so perhaps not seen
    device.sock.close()
    device.turn()
    with queue(0) as one:
        device.host.activate(1 << 32, [one])
        device.host.enable_queue(one)
    device.host.write_config(2, b"b")
    device.host.reset_queue(0)
    device.attach()
    device.send(BLOCK_READY)
    device.turn()
    assert device.events.calls == ["reactivate block:0"]
    assert device.take()[0] == write_config(1, (1, b"a"), (2, b"b"))
    device.send(device_protocol.Done(1))
    device.turn()
    reattach(device)
    device.send(BLOCK_READY)
    device.turn()
    device.host.reset()
    assert isinstance(device.take()[0], device_protocol.Reset)


@pytest.mark.parametrize("asked_before", [True, False])
def test_driver_that_the_last_process_did_not_forget_is_forgotten_by_the_next(
    device: HostileDevice, asked_before: bool
) -> None:
    device.host.write_config(1, b"a")
    if asked_before:
        device.host.reset()
    device.sock.close()
    device.turn()
    if not asked_before:
        device.host.reset()
    device.host.write_config(2, b"b")  # the next driver's
    device.attach()
    device.send(BLOCK_READY)
    device.turn()
    assert device.events.calls == ["reactivate block:0"]
    assert [device.take()[0] for _ in range(2)] == [
        device_protocol.Reset(1),
        write_config(2, (2, b"b")),
    ]
    device.send(device_protocol.Done(1), device_protocol.Done(2))
    device.turn()
    assert device.events.calls == ["reactivate block:0"]
    reattach(device)
    device.send(BLOCK_READY)
    device.turn()
    device.host.write_config(3, b"c")
    assert device.take()[0] == write_config(1, (3, b"c"))


@pytest.mark.parametrize(
    "ready",
    [
        device_protocol.Ready(4, BLOCK_READY.features, BLOCK_READY.queue_sizes, CONFIG),
        device_protocol.Ready(2, 0, BLOCK_READY.queue_sizes, CONFIG),
        device_protocol.Ready(2, BLOCK_READY.features, (256,), CONFIG),
        device_protocol.Ready(2, BLOCK_READY.features, BLOCK_READY.queue_sizes, CONFIG[1:]),
        replace(BLOCK_READY, early_writes=True),
    ],
    ids=["type", "features", "queues", "configuration", "early writes"],
)
def test_another_device_is_no_successor(
    device: HostileDevice, ready: device_protocol.Ready
) -> None:
    reattach(device)
    device.send(ready)
    device.turn()
    assert device.verdict == "not the device that its predecessor was"
    assert device.events.calls == []
    assert device.host.features == BLOCK_READY.features
