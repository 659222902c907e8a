# SPDX-License-Identifier: BSD-3-Clause
"""The pool starts monitors, not too many and not too often; tests/baremetal has real ones."""

from __future__ import annotations

import errno
import os
import select
import socket
from typing import TYPE_CHECKING

import pytest

from crosvm_py.pool import pool as pool_module
from crosvm_py.pool import protocol
from crosvm_py.pool.pool import Pool, run_pool
from crosvm_py.socket_path import SocketUse, bind_socket
from sys_util.channel import Channel, socket_pair
from sys_util.errors import ConfigError
from sys_util.event_loop import EventLoop

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

SIZE = 2
DUE_AT_ONCE = 0.2  # seconds: less than the shortest back-off


class Rig:
    """A pool whose monitors are processes that only sleep or end, and what they can say."""

    def __init__(self, path: Path, monkeypatch: pytest.MonkeyPatch, program: str) -> None:
        self.ends: list[Channel] = []  # the monitors' ends of their channels

        def start(_kernels: Sequence[object]) -> pool_module._Monitor:
            ours, theirs = socket_pair()
            pid = os.posix_spawn(f"/bin/{program}", [program, "600"], {})
            if program == "sleep":
                self.ends.append(Channel(theirs, protocol.MONITOR_CODEC))
            else:
                theirs.close()
            return pool_module._Monitor(pid, Channel(ours, protocol.POOL_CODEC))

        monkeypatch.setattr(pool_module, "_start_monitor", start)
        other = (1, os.geteuid(), 0)  # the pool does not serve itself
        monkeypatch.setattr(pool_module, "peer_credentials", lambda _sock: other)
        self.loop = EventLoop()
        bound = bind_socket(str(path), SocketUse("pool", socket.SOCK_SEQPACKET))
        self.path = path
        self.pool = Pool(bound, SIZE, self.loop)

    def run_until(self, condition: Callable[[], bool]) -> None:
        while not condition():
            self.loop.run_once(1.0)

    def connect(self) -> socket.socket:
        client = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        client.settimeout(30.0)
        client.connect(str(self.path))
        return client

    def close(self) -> None:
        self.pool.close()
        for monitor in self.pool.monitors:
            os.kill(monitor.pid, 9)
            os.waitpid(monitor.pid, 0)
            os.close(monitor.pidfd)
            if monitor.client is not None:
                monitor.client.close()
        for end in self.ends:
            end.close()
        self.loop.close()


def is_answered(sock: socket.socket) -> bool:
    """Return whether there is something to read, or to accept."""
    poll = select.poll()  # select(2) takes no descriptor above 1023
    poll.register(sock, select.POLLIN)
    return bool(poll.poll(0))


@pytest.fixture
def rig(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], Rig]]:
    made: list[Rig] = []

    def make(program: str) -> Rig:
        made.append(Rig(tmp_path / "pool.sock", monkeypatch, program))
        return made[-1]

    yield make
    for each in made:
        each.close()


@pytest.mark.usefixtures("lines")
def test_monitor_that_ends_before_it_waits_is_replaced_later_and_later(
    rig: Callable[[str], Rig],
) -> None:
    failing = rig("false")
    delays = []
    for _ in range(2):
        failing.run_until(lambda: bool(failing.pool.monitors))
        failing.run_until(lambda: not failing.pool.monitors)
        delays.append(failing.pool.back_off_seconds)
    assert DUE_AT_ONCE < delays[0] < delays[1]


def test_only_as_many_wait_as_were_asked_for(rig: Callable[[str], Rig]) -> None:
    full = rig("sleep")
    assert len(full.ends) == 1  # one at a time
    full.ends[0].send(protocol.Ready())
    full.run_until(lambda: len(full.ends) == SIZE)
    full.ends[1].send(protocol.Ready())
    full.run_until(lambda: all(monitor.is_idle for monitor in full.pool.monitors))
    clients = [full.connect() for _ in range(SIZE + 1)]
    full.run_until(lambda: is_answered(clients[-1]))
    assert b"are taken" in clients[-1].recv(4096)
    assert len(full.ends) == SIZE  # none has taken its order, so none is replaced
    full.ends[0].send(protocol.Taken())
    full.run_until(lambda: len(full.ends) == SIZE + 1)
    for client in clients:
        client.close()


def test_client_that_has_gone_takes_no_monitor(rig: Callable[[str], Rig]) -> None:
    waiting = rig("sleep")
    waiting.ends[0].send(protocol.Ready())
    waiting.run_until(lambda: waiting.pool.monitors[0].is_idle)
    waiting.connect().close()
    waiting.run_until(lambda: not is_answered(waiting.pool._bound.sock))
    assert waiting.pool.monitors[0].is_idle


def test_directory_of_another_user_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: os.stat(tmp_path).st_uid + 1)
    with pytest.raises(ConfigError, match="belongs to another user"):
        run_pool(str(tmp_path / "pool.sock"), 1)


def test_pool_without_a_descriptor_for_a_client_goes_on(
    rig: Callable[[str], Rig], monkeypatch: pytest.MonkeyPatch, lines: list[str]
) -> None:
    full = rig("sleep")

    def refuse(_fd: int) -> int:
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr(os, "dup", refuse)
    with full.connect() as client:
        full.run_until(lambda: is_answered(client))
        assert client.recv(1) == b""
    monkeypatch.undo()
    assert any("no client can be served now: Too many open files" in line for line in lines)


def test_monitor_that_cannot_be_watched_is_ended_and_reaped(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refuse(_pid: int) -> int:
        raise OSError(errno.EMFILE, "Too many open files")

    before = os.listdir("/proc/self/fd")
    monkeypatch.setattr(os, "pidfd_open", refuse)
    with pytest.raises(OSError, match="Too many open files"):
        pool_module._start_monitor([])
    with pytest.raises(ChildProcessError):
        os.waitpid(-1, os.WNOHANG)
    assert len(os.listdir("/proc/self/fd")) == len(before)
