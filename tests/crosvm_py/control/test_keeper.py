# SPDX-License-Identifier: BSD-3-Clause
"""The keeper: it starts a control process again when one has ended, and ends after the vmm."""

from __future__ import annotations

import os
import signal
import socket
from typing import TYPE_CHECKING

import pytest

from crosvm_py.control import keeper as keeper_module
from crosvm_py.control.protocol import FROM_CONTROL_CODEC, Ask, ControlFds, Serving
from crosvm_py.requests.life import Resume
from crosvm_py.socket_path import bind_control_socket
from crosvm_py.vmm.control_proxy import KeeperProcess, start_keeper
from sys_util.channel import Channel
from sys_util.errors import ChannelClosed
from sys_util.wire import encode
from tests.support.waiting import receive

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from crosvm_py.socket_path import BoundSocket

pytestmark = pytest.mark.slow


@pytest.fixture
def bound(tmp_path: Path) -> Iterator[BoundSocket]:
    made = bind_control_socket(str(tmp_path / "s"))
    yield made
    made.close()


@pytest.fixture
def keeper(bound: BoundSocket, monkeypatch: pytest.MonkeyPatch) -> Iterator[KeeperProcess]:
    monkeypatch.setattr(keeper_module, "FIRST_PAUSE_SECONDS", 0.0)
    made = start_keeper(ControlFds(listening=bound.sock.fileno()), (None, None), [])
    yield made
    made.end()


def next_control(keeper: KeeperProcess) -> tuple[int, Channel]:
    """Return the pid of the next control process, and the vmm's end of its channel."""
    message, (fd,) = receive(keeper.channel)
    assert isinstance(message, Serving)
    return message.pid, Channel(socket.socket(fileno=fd), FROM_CONTROL_CODEC)


def test_request_of_a_client_arrives(keeper: KeeperProcess, bound: BoundSocket) -> None:
    _, channel = next_control(keeper)
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as client:
        client.connect(bound.path)
        client.send(encode(Resume()))
        message, _ = receive(channel)
    assert message == Ask(0, encode(Resume()))
    channel.close()


def test_another_process_serves_the_socket_when_one_was_killed(
    keeper: KeeperProcess, bound: BoundSocket
) -> None:
    pid, channel = next_control(keeper)
    os.kill(pid, signal.SIGKILL)
    with pytest.raises(ChannelClosed):
        receive(channel)
    channel.close()
    other, channel = next_control(keeper)
    assert other != pid
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as client:
        client.connect(bound.path)
        client.send(encode(Resume()))
        receive(channel)
    channel.close()


def test_control_process_ends_with_its_keeper(keeper: KeeperProcess) -> None:
    _, channel = next_control(keeper)
    os.kill(keeper.pid, signal.SIGKILL)
    with pytest.raises(ChannelClosed):
        receive(channel)
    channel.close()
    with pytest.raises(ChannelClosed):
        receive(keeper.channel)


def test_both_end_when_the_vmm_has_ended(bound: BoundSocket) -> None:
    keeper = start_keeper(ControlFds(listening=bound.sock.fileno()), (None, None), [])
    _, channel = next_control(keeper)
    keeper.channel.close()
    channel.close()
    _, status = os.waitpid(keeper.pid, 0)
    assert status == 0
