# SPDX-License-Identifier: BSD-3-Clause
"""``crosvm resize``: what it asks for, and what it refuses before it asks."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from crosvm_py.cli.dispatch import execute
from crosvm_py.control import socket_client as client
from crosvm_py.control.socket_client import ControlError
from crosvm_py.requests.resize import Resize, Resized
from sys_util.errors import UsageError

if TYPE_CHECKING:
    from crosvm_py.requests.protocol import Request, Response


def answering(monkeypatch: pytest.MonkeyPatch, *, is_busy: bool = False) -> list[Request]:
    asked: list[Request] = []

    def ask(_path: str, request: Request) -> Response:
        asked.append(request)
        return Resized(is_busy)

    monkeypatch.setattr(client, "ask", ask)
    return asked


@pytest.mark.parametrize(
    ("words", "request_"),
    [
        (["--cpus", "4"], Resize(4)),
        (["--memory=1g"], Resize(memory_bytes=1 << 30)),
        (["--balloon=0", "--cpus=1"], Resize(1, None, 0)),
    ],
)
def test_sizes_are_asked_for(
    monkeypatch: pytest.MonkeyPatch, words: list[str], request_: Resize
) -> None:
    asked = answering(monkeypatch)
    assert execute(["resize", *words, "vm.sock"]) == 0
    assert asked == [request_]


def test_guest_that_has_not_followed_yet_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    answering(monkeypatch, is_busy=True)
    with pytest.raises(ControlError, match="s: the guest has not yet let go of vCPUs"):
        execute(["resize", "--cpus=1", "s"])


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["s"], "resize: --cpus, --memory or --balloon is missing"),
        (["--cpus=1"], "resize: SOCKET is missing"),
        (["--cpus=0", "s"], r"0 vCPUs are not in 1\.\.254"),
        (["--cpus=255", "s"], r"255 vCPUs are not in 1\.\.254"),
        (["--cpus=two", "s"], "--cpus: 'two': not a number"),
        (["--memory=big", "s"], "--memory: 'big': not a number"),
        (["--memory=5t", "s"], "--memory: 5t is more than 4 TiB"),
    ],
)
def test_command_line_that_makes_no_sense_is_refused(words: list[str], reason: str) -> None:
    with pytest.raises(UsageError, match=reason):
        execute(["resize", *words])
