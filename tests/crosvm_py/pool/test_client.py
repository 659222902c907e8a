# SPDX-License-Identifier: BSD-3-Clause
"""Find the pool in a command line, and believe nobody else's."""

from __future__ import annotations

import os
import socket
from typing import TYPE_CHECKING

import pytest

from crosvm_py.pool import client, protocol
from crosvm_py.pool.client import pool_path, run_in_pool
from sys_util.channel import Channel
from sys_util.errors import ProtocolError
from sys_util.wire import encode

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.parametrize(
    ("words", "path"),
    [
        pytest.param("run --pool p kernel", "p", id="first"),
        pytest.param("--log-level info run -m 16 --pool=p kernel", "p", id="equals"),
        pytest.param("run kernel", None, id="none"),
        pytest.param("run -p --pools kernel", None, id="other-word"),
        pytest.param("pool --size 2 p", None, id="other-command"),
        pytest.param("run kernel --pool", "", id="no-value"),
    ],
)
def test_pool_in_a_command_line(words: str, path: str | None) -> None:
    assert pool_path(words.split()) == path


def test_pool_of_another_user_is_not_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    path = str(tmp_path / "pool.sock")
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
        listener.bind(path)
        listener.listen()
        monkeypatch.setattr(client, "peer_credentials", lambda _sock: (1, os.geteuid() + 1, 0))
        assert run_in_pool(["run", "--pool", path, "kernel"]) is None
    assert "the pool belongs to another user; starting as usual" in capfd.readouterr().err


@pytest.mark.parametrize(
    "message",
    [
        pytest.param(protocol.Ended(0), id="status-before-a-start"),
        pytest.param(protocol.Started(), id="start-without-a-process"),
    ],
)
def test_answer_without_sense_starts_as_usual(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], message: protocol.Ended | protocol.Started
) -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs, pytest.MonkeyPatch.context() as patch:
        theirs.send(encode(message))
        channel = Channel(ours, protocol.CLIENT_CODEC)
        patch.setattr(client, "_connect", lambda _path: channel)
        assert run_in_pool(["run", "--pool", str(tmp_path), "kernel"]) is None
    assert "its answer makes no sense; starting as usual" in capfd.readouterr().err


@pytest.mark.parametrize(
    "message",
    [
        pytest.param(protocol.Run("1", (b"x",) * (protocol.MAX_WORDS + 1), (), ()), id="words"),
        pytest.param(protocol.Run("1", (), (b"A=1",) * (protocol.MAX_VARIABLES + 1), ()), id="env"),
        pytest.param(protocol.Run("1" * 65, (), (), ()), id="version"),
        pytest.param(protocol.Run("1", (), (), (-1,)), id="descriptor"),
        pytest.param(protocol.Declined("?"), id="type"),
    ],
)
def test_order_has_bounds(message: protocol.Run | protocol.Declined) -> None:
    with pytest.raises(ProtocolError):
        protocol.ORDER_CODEC.decode(encode(message))
