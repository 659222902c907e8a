# SPDX-License-Identifier: BSD-3-Clause
"""Processes that end before they are ready, or cannot be made: restarts, and the saved state."""

from __future__ import annotations

import signal
from typing import TYPE_CHECKING

import pytest

from crosvm_py.care import DEFAULT_LIMIT
from crosvm_py.exit_status import EXIT_BUG, EXIT_HOST
from crosvm_py.vmm import restart
from crosvm_py.warden.protocol import Exited, Kill, Respawn, SpawnFailed
from devices.virtio.saved_state import SavedState
from tests.crosvm_py.vmm.test_restart import Rig
from tests.support.stored import stored

if TYPE_CHECKING:
    from collections.abc import Iterator

STATE = {"limits": [0] * 6}


class FailingRig(Rig):
    """A device that was ready once; its next processes end before they are ready."""

    def __init__(self) -> None:
        super().__init__(DEFAULT_LIMIT)
        self.saved = SavedState(self.device.cells)  # type: ignore[arg-type]  # a view, in truth

    def fail_to_start(self, status: int, cause: str = "") -> None:
        """Make the process that the supervisor asks for, and end it without a message."""
        self.wait_for_request()
        self.warden.make(0, None)
        self.warden.devices[0].close()
        self.warden.turn()
        assert self.warden.take()[0] == Kill(0)
        self.warden.send(Exited(0, self.device.pid, status, cause))

    def is_lost(self) -> bool:
        return self.device.status.dead and not self.warden.asked


@pytest.fixture
def rig(lines: list[str], monkeypatch: pytest.MonkeyPatch) -> Iterator[FailingRig]:
    monkeypatch.setattr(restart, "_FIRST_DELAY_SECONDS", 0.0)
    rig = FailingRig()
    rig.saved.store(STATE)
    rig.die()
    lines.clear()
    yield rig
    rig.warden.close()


def test_processes_that_are_never_ready_are_made_ten_times_and_the_device_is_lost(
    rig: FailingRig, lines: list[str]
) -> None:
    for _ in range(DEFAULT_LIMIT.restarts):
        assert not rig.is_lost()
        rig.fail_to_start(EXIT_BUG)
    assert rig.is_lost()
    lost = "rng: is lost to the guest: restarted 10 times within 60 s (--device-restart)"
    assert [line for line in lines if "lost" in line] == [lost]
    assert len(lines) == DEFAULT_LIMIT.restarts + 2  # and the one about its state
    assert rig.warden.deaths == []


def test_processes_that_cannot_be_made_are_tried_ten_times_and_the_device_is_lost(
    rig: FailingRig, lines: list[str]
) -> None:
    for _ in range(DEFAULT_LIMIT.restarts):
        rig.wait_for_request()
        assert rig.warden.take()[0] == Respawn(0)
        rig.warden.send(SpawnFailed(0, "clone: Resource temporarily unavailable"))
    assert rig.is_lost()
    assert len(lines) == DEFAULT_LIMIT.restarts + 1
    assert stored(rig.saved) == STATE


@pytest.mark.parametrize(
    ("status", "cause", "left"),
    [
        pytest.param(EXIT_BUG, "", None, id="bug"),
        pytest.param(-signal.SIGSEGV, "", None, id="fault"),
        pytest.param(-signal.SIGSYS, "", None, id="denied"),
        pytest.param(-signal.SIGKILL, "out of memory", None, id="memory"),
        pytest.param(0, "", None, id="silent"),
        pytest.param(-signal.SIGKILL, "", STATE, id="killed"),
        pytest.param(EXIT_HOST, "", STATE, id="host"),
    ],
)
def test_state_that_may_be_why_a_process_did_not_start_is_not_found_again(
    rig: FailingRig, lines: list[str], status: int, cause: str, left: object
) -> None:
    rig.fail_to_start(status, cause)
    assert stored(rig.saved) == left
    rig.fail_to_start(status, cause)
    assert stored(rig.saved) is None
    cleared = "rng: no process starts with its saved state: cleared"
    assert [line for line in lines if "state" in line] == [cleared]


def test_state_stays_with_processes_that_were_ready(rig: FailingRig) -> None:
    for _ in range(3):
        rig.fail_to_start(-signal.SIGKILL)
        rig.come_again()
        rig.die(EXIT_BUG)
    assert stored(rig.saved) == STATE


def test_state_of_a_process_that_tells_nonsense_before_it_is_ready_is_cleared(
    rig: FailingRig,
) -> None:
    rig.wait_for_request()
    rig.warden.make(0, None)
    rig.warden.devices[0].close()
    rig.device.fail("not ready after 60 s")
    assert rig.warden.take()[0] == Kill(0)
    rig.warden.send(Exited(0, 100, -signal.SIGKILL))
    assert stored(rig.saved) is None
