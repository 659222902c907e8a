# SPDX-License-Identifier: BSD-3-Clause
"""Descriptors and timers of a device, in a real loop: errors of the guest, holding, releasing."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from devices.virtio.loop_context import LoopContext
from devices.virtio.queue.split_queue import QueueError
from devices.virtio.queue.worker import QueueWorker
from devices.virtio.rng.device import Rng, RngSpec
from sys_util.event_loop import EPOLLIN, EPOLLOUT, EventLoop
from sys_util.guest_memory import GuestMemory

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sys_util.errors import GuestError

PAUSED = "paused"
FAILED = "failed"


class Surroundings:
    """A context, and all that it was told."""

    def __init__(self, memory: GuestMemory) -> None:
        self.loop = EventLoop()
        self.errors: list[GuestError] = []
        self.config_changes: list[None] = []
        self.events: list[int] = []
        self.context = LoopContext(
            memory,
            self.loop,
            QueueWorker(Rng(RngSpec()), memory),
            lambda: None,
            self.note_change,
            self.errors.append,
        )
        self.read_fd, self.write_fd = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)

    def note_change(self, *, by_driver: bool = False) -> None:
        assert not by_driver
        self.config_changes.append(None)

    def turn(self) -> None:
        self.loop.run_once(0)

    def break_off(self, _events: int = 0) -> None:
        raise QueueError("nonsense")

    def close(self) -> None:
        self.loop.close()
        os.close(self.read_fd)
        if self.write_fd >= 0:
            os.close(self.write_fd)


@pytest.fixture
def around(memory: GuestMemory) -> Iterator[Surroundings]:
    around = Surroundings(memory)
    yield around
    around.close()


def test_descriptor_that_is_ready_calls_back(around: Surroundings) -> None:
    around.context.add_fd(around.read_fd, around.events.append)
    around.turn()
    os.write(around.write_fd, b"x")
    around.turn()
    assert around.events == [EPOLLIN]


def test_descriptor_that_was_removed_is_silent(around: Surroundings) -> None:
    around.context.add_fd(around.write_fd, around.events.append, events=EPOLLOUT)
    around.context.remove_fd(around.write_fd)
    around.turn()
    assert around.events == []


def test_events_can_be_changed(around: Surroundings) -> None:
    around.context.add_fd(around.write_fd, around.events.append, events=0)
    around.turn()
    around.context.modify_fd(around.write_fd, EPOLLOUT)
    around.turn()
    assert around.events == [EPOLLOUT]


def test_guest_error_of_a_descriptors_callback_is_passed_on(around: Surroundings) -> None:
    around.context.add_fd(around.write_fd, around.break_off, events=EPOLLOUT)
    around.turn()
    assert [str(error) for error in around.errors] == ["nonsense"]


def test_guest_error_of_a_timer_is_passed_on(around: Surroundings) -> None:
    around.context.call_later(0, around.break_off)
    around.turn()
    assert [str(error) for error in around.errors] == ["nonsense"]


def test_our_own_bug_is_not_taken_for_the_guests(around: Surroundings) -> None:
    def bug() -> None:
        raise KeyError("bug")

    around.context.call_later(0, bug)
    with pytest.raises(KeyError, match="bug"):
        around.turn()
    assert around.errors == []


def test_timer_that_was_cancelled_does_not_run(around: Surroundings) -> None:
    around.context.call_later(0, lambda: around.events.append(1)).cancel()
    around.turn()
    assert around.events == []


def test_held_descriptors_are_silent_even_when_their_peer_goes(around: Surroundings) -> None:
    around.context.add_fd(around.read_fd, around.events.append)
    around.context.hold(PAUSED)
    os.close(around.write_fd)
    around.write_fd = -1
    around.turn()
    assert around.events == []
    around.context.release(PAUSED)
    around.turn()
    assert len(around.events) == 1


def test_changes_while_held_count_afterwards(around: Surroundings) -> None:
    around.context.add_fd(around.read_fd, around.events.append)
    around.context.hold(PAUSED)
    around.context.add_fd(around.write_fd, around.events.append, events=0)
    around.context.modify_fd(around.write_fd, EPOLLOUT)
    around.context.remove_fd(around.read_fd)
    os.write(around.write_fd, b"x")
    around.turn()
    assert around.events == []
    around.context.release(PAUSED)
    around.turn()
    assert around.events == [EPOLLOUT]


def test_timer_that_runs_out_while_held_comes_after(around: Surroundings) -> None:
    around.context.call_later(0, lambda: around.events.append(1))
    around.context.hold(PAUSED)
    around.turn()
    assert around.events == []
    around.context.release(PAUSED)
    around.turn()
    around.turn()
    assert around.events == [1]


def test_timer_can_be_cancelled_after_it_ran_out_while_held(around: Surroundings) -> None:
    timer = around.context.call_later(0, lambda: around.events.append(1))
    around.context.hold(PAUSED)
    around.turn()
    timer.cancel()
    around.context.release(PAUSED)
    around.turn()
    assert around.events == []


def test_two_reasons_to_hold_need_two_releases(around: Surroundings) -> None:
    around.context.add_fd(around.write_fd, around.events.append, events=EPOLLOUT)
    around.context.hold(PAUSED)
    around.context.hold(FAILED)
    around.context.hold(FAILED)
    around.context.release(FAILED)
    around.turn()
    assert around.events == []
    around.context.release(PAUSED)
    around.context.release(PAUSED)
    around.turn()
    assert around.events == [EPOLLOUT]


def test_config_change_is_passed_on(around: Surroundings) -> None:
    around.context.config_changed()
    assert len(around.config_changes) == 1
