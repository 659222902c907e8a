# SPDX-License-Identifier: BSD-3-Clause
"""The event loop: the order of timers, removal during a round, calls from other threads."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from threading import Thread

import pytest

from sys_util.event_loop import EPOLLOUT, EventLoop, Timer


@pytest.fixture
def loop() -> Iterator[EventLoop]:
    loop = EventLoop()
    yield loop
    loop.close()


def test_timers_run_in_the_order_of_their_time(loop: EventLoop) -> None:
    calls: list[str] = []
    loop.call_later(0.002, lambda: calls.append("late"))
    loop.call_later(0, lambda: calls.append("early"))
    loop.call_later(0.003, loop.stop)
    loop.run()
    assert calls == ["early", "late"]


def test_cancelled_timer_does_not_run(loop: EventLoop) -> None:
    calls: list[str] = []
    loop.call_later(0, lambda: calls.append("never")).cancel()
    loop.call_later(0, loop.stop)
    loop.run()
    assert calls == []


def test_cancelled_timers_do_not_pile_up(loop: EventLoop) -> None:
    calls: list[int] = []
    for number in range(100):
        loop.call_later(0, lambda number=number: calls.append(number))  # type: ignore[misc]  # a default
    for _ in range(10_000):
        loop.call_later(3600, calls.clear).cancel()
        assert len(loop._timers) <= 2 * 100 + 1
    loop.run_once(0)
    assert calls == list(range(100))
    for _ in range(1000):
        loop.call_later(3600, calls.clear).cancel()
    assert len(loop._timers) <= 64  # fewer timers live now


def test_call_from_another_thread_wakes_the_loop(loop: EventLoop) -> None:
    thread = threading.Thread(target=lambda: loop.call_soon_threadsafe(loop.stop))
    thread.start()
    loop.run()
    thread.join()


def test_timer_of_another_thread_is_not_lost_while_the_loop_drops_a_cancelled_one(
    loop: EventLoop,
) -> None:
    calls: list[str] = []
    threads = [Thread(target=lambda: loop.call_later(0, lambda: calls.append("armed")))]

    class Nosy(Timer):
        """A cancelled timer. While the loop looks at it, another thread adds an earlier timer."""

        @property
        def callback(self) -> None:
            if threads:
                thread = threads.pop()
                thread.start()
                thread.join()

        @callback.setter
        def callback(self, value: None) -> None:
            """Ignore the value: the timer stays cancelled."""

    loop._push(Nosy(time.monotonic() + 60, None))
    for _ in range(3):
        loop.run_once(0)
    assert calls == ["armed"]


def test_a_callback_may_remove_another_of_the_same_round(loop: EventLoop) -> None:
    pipes = [os.pipe() for _ in range(2)]
    served: list[int] = []

    def serve(fd: int) -> None:
        served.append(fd)
        for other, _ in pipes:
            loop.remove(other)
        loop.stop()

    for read_end, write_end in pipes:
        os.write(write_end, b"x")
        loop.add(read_end, lambda _events, fd=read_end: serve(fd))  # type: ignore[misc]  # a default
    loop.run()
    assert len(served) == 1
    for pipe in pipes:
        for fd in pipe:
            os.close(fd)


def test_events_of_a_closed_descriptor_are_not_for_the_next_of_its_number(loop: EventLoop) -> None:
    pipes = [os.pipe() for _ in range(2)]
    quiet: list[int] = []

    def serve(mine: int, other: int) -> None:
        loop.remove(mine)
        loop.remove(other)
        os.dup2(idle[0], other)
        loop.add(other, quiet.append)

    idle = os.pipe()
    (one, to_one), (two, to_two) = pipes
    for mine, other, write_end in ((one, two, to_one), (two, one, to_two)):
        os.write(write_end, b"x")
        loop.add(mine, lambda _events, ends=(mine, other): serve(*ends))  # type: ignore[misc]  # as above
    loop.run_once(0)
    assert quiet == []
    for fd in (*idle, *pipes[0], *pipes[1]):
        os.close(fd)


def test_modify_changes_what_is_waited_for(loop: EventLoop) -> None:
    read_end, write_end = os.pipe()
    seen: list[int] = []
    loop.add(write_end, seen.append, events=0)
    loop.run_once(0)
    assert seen == []
    loop.modify(write_end, EPOLLOUT)
    loop.run_once(0)
    assert seen == [EPOLLOUT]
    os.close(read_end)
    os.close(write_end)


def test_signal_that_another_thread_takes_is_handled_by_the_loop(loop: EventLoop) -> None:
    release = threading.Event()
    other = threading.Thread(target=release.wait)
    other.start()
    previous = signal.signal(signal.SIGUSR1, lambda *_: loop.stop())
    loop.wake_on_signals()
    assert other.ident is not None
    kill = threading.Timer(0.05, signal.pthread_kill, (other.ident, signal.SIGUSR1))
    kill.start()
    loop.call_later(10, lambda: pytest.fail("the handler did not run"))
    loop.run()
    signal.signal(signal.SIGUSR1, previous)
    release.set()
    other.join()
    kill.join()
