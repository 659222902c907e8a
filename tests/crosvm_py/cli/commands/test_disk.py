# SPDX-License-Identifier: BSD-3-Clause
"""``crosvm disk resize``: what it asks for, and what it refuses before it asks."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from crosvm_py.cli.commands import disk as cli
from crosvm_py.cli.dispatch import execute
from crosvm_py.control import socket_client as client
from crosvm_py.control.socket_client import ControlError
from crosvm_py.requests.devices import ResizeDisk
from crosvm_py.requests.protocol import Done
from devices.virtio.commands import DiskSize
from sys_util.errors import UsageError

if TYPE_CHECKING:
    from crosvm_py.requests.protocol import Request, Response


@pytest.fixture
def said(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    said: list[str] = []
    monkeypatch.setattr(cli, "write_error", said.append)
    return said


def answering(monkeypatch: pytest.MonkeyPatch, response: Response) -> list[Request]:
    asked: list[Request] = []

    def ask(_path: str, request: Request) -> Response:
        asked.append(request)
        return response

    monkeypatch.setattr(client, "ask", ask)
    return asked


def test_resize_asks_for_the_size_in_bytes(
    monkeypatch: pytest.MonkeyPatch, said: list[str]
) -> None:
    asked = answering(monkeypatch, DiskSize(2 << 30))
    assert execute(["disk", "resize", "1", "2G", "vm.sock"]) == 0
    assert asked == [ResizeDisk(1, 2 << 30)]
    assert said == []


def test_resize_of_a_block_device_tells_its_own_size(
    monkeypatch: pytest.MonkeyPatch, said: list[str]
) -> None:
    answering(monkeypatch, DiskSize(4096))
    assert execute(["disk", "resize", "0", "8k", "vm.sock"]) == 0
    assert said == ["disk resize: vm.sock: a block device has its own size, 4096"]


def test_answer_to_something_else_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    answering(monkeypatch, Done())
    with pytest.raises(ControlError, match="s: an answer to another question"):
        execute(["disk", "resize", "0", "1m", "s"])


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        pytest.param([], "disk: a command is missing: resize", id="nothing"),
        pytest.param(["resize", "0", "1m"], "disk resize: SOCKET is missing", id="no-socket"),
        pytest.param(["resize", "0", "1m", "s", "t"], "unexpected argument 't'", id="two-sockets"),
        pytest.param(
            ["resise", "0", "1m", "s"], "command 'disk resise', did you mean resize", id="word"
        ),
        pytest.param(["resize", "vda", "1m", "s"], "disk resize: INDEX 'vda': not", id="name"),
        pytest.param(["resize", "-1", "1m", "s"], "unknown option -1", id="negative-index"),
        pytest.param(["resize", "26", "1m", "s"], r"INDEX 26 is not in 0\.\.25", id="index"),
        pytest.param(["resize", "0", "0", "s"], r"SIZE 0: 0 bytes is not in 1\.\.", id="zero"),
        pytest.param(["resize", "0", "-1", "s"], "unknown option -1", id="negative"),
        pytest.param(["resize", "0", "big", "s"], "disk resize: SIZE 'big': not", id="text"),
        pytest.param(["resize", "0", "1.5g", "s"], "SIZE '1.5g': not a number", id="fraction"),
        pytest.param(["resize", "0", "8e", "s"], r"bytes is not in 1\.\.", id="63-bits"),
        pytest.param(["resize", "0", "16e", "s"], "more bytes than 64 bits", id="64-bits"),
    ],
)
def test_command_line_that_makes_no_sense_is_refused(words: list[str], reason: str) -> None:
    with pytest.raises(UsageError, match=reason):
        execute(["disk", *words])
