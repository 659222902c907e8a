# SPDX-License-Identifier: BSD-3-Clause
"""The process of a broker, without its jail: how it ends, and what a flood comes to."""

from __future__ import annotations

import os
import select
import signal
import socket
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import msgpack
import pytest

from crosvm_py.device_process.vsock_broker import run_broker
from crosvm_py.exit_status import EXIT_HOST
from devices.virtio.vsock.broker import DEVICE_CODEC, BrokerFailed, Connect
from sys_util.channel import Channel, socket_pair
from sys_util.errors import ProtocolError

PORT = 52
QUESTIONS = 400


@pytest.fixture
def process(tmp_path: Path) -> Iterator[tuple[int, socket.socket]]:
    """Return a broker's pid and the device's end of its channel."""
    ours, theirs = socket_pair()
    folder = os.open(tmp_path, os.O_PATH)
    pid = os.fork()
    if pid == 0:
        status = 99
        try:
            ours.close()
            status = run_broker(b"v", theirs, [folder], None)
        finally:
            os._exit(status)
    theirs.close()
    os.close(folder)
    pidfd = os.pidfd_open(pid)
    with ours:
        yield pid, ours
    with suppress(ProcessLookupError):  # it has ended
        signal.pidfd_send_signal(pidfd, signal.SIGKILL)
        os.waitpid(pid, 0)
    os.close(pidfd)


def status_of(pid: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def test_broker_ends_with_its_device(process: tuple[int, socket.socket]) -> None:
    pid, sock = process
    sock.close()
    assert status_of(pid) == 0


def test_broker_says_why_it_ends(process: tuple[int, socket.socket]) -> None:
    pid, sock = process
    sock.send(msgpack.packb([Connect.TYPE, "../control", False]))
    assert status_of(pid) == EXIT_HOST
    message = DEVICE_CODEC.decode(sock.recv(10_000))
    assert message == BrokerFailed("'../control' is not a whole number in 0..0xffffffff")


def test_flood_of_questions_is_answered_to_the_last_one(
    process: tuple[int, socket.socket], tmp_path: Path
) -> None:
    _, sock = process
    channel = Channel(sock, DEVICE_CODEC)
    asked = answered = 0
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / f"v_{PORT}"))
        listener.listen(QUESTIONS)
        while answered < QUESTIONS:
            poll = select.poll()
            poll.register(sock, select.POLLIN | (select.POLLOUT if asked < QUESTIONS else 0))
            poll.poll()
            with suppress(ProtocolError):  # it reads no more than it can answer
                while asked < QUESTIONS:
                    channel.send(Connect(PORT, False))
                    asked += 1
            while (answer := channel.receive()) is not None:
                answered += 1
                os.close(answer[1][0])
        for _ in range(QUESTIONS):
            listener.accept()[0].close()
