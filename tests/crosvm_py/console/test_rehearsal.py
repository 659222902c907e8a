# SPDX-License-Identifier: BSD-3-Clause
"""Serial ports in a rehearsal: the same errors as in a run, and no effect on others."""

from __future__ import annotations

import os
import select
import socket
from contextlib import ExitStack
from typing import TYPE_CHECKING

import pytest

from crosvm_py.config import SerialSpec
from crosvm_py.console.ends import open_ends
from crosvm_py.console.rehearsal import rehearse_serial_ports
from crosvm_py.console.targets import open_unix, open_unix_stream
from sys_util.errors import HostError, describe

if TYPE_CHECKING:
    from pathlib import Path


def rehearsed(**fields: object) -> SerialSpec:
    spec = SerialSpec(**fields)  # type: ignore[arg-type]  # as the tests name them
    (found,) = rehearse_serial_ports([spec])
    return found


def test_file_is_not_made_and_one_that_is_there_not_changed(tmp_path: Path) -> None:
    there, missing = tmp_path / "there.log", tmp_path / "missing.log"
    there.write_text("old")
    os.utime(there, (1, 1))
    for path in (there, missing):
        assert rehearsed(type="file", path=str(path), console=True) == SerialSpec(
            "file", path=os.devnull, console=True
        )
    assert not missing.exists()
    assert (there.read_text(), there.stat().st_mtime) == ("old", 1)


def test_fifo_is_not_opened(tmp_path: Path) -> None:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    reader = os.open(fifo, os.O_RDONLY | os.O_NONBLOCK)
    rehearsed(type="file", path=str(fifo))
    rehearsed(type="sink", input=str(fifo))
    poll = select.poll()
    poll.register(reader, select.POLLIN)
    assert poll.poll(0) == []  # POLLHUP, if there had been a writer
    os.close(reader)


@pytest.mark.parametrize(
    ("kind", "unix_type"), [("unix-stream", socket.SOCK_STREAM), ("unix", socket.SOCK_DGRAM)]
)
def test_socket_is_not_connected_to(
    tmp_path: Path, kind: str, unix_type: socket.SocketKind
) -> None:
    path = str(tmp_path / "socket")
    with socket.socket(socket.AF_UNIX, unix_type) as sock:
        sock.bind(path)
        sock.setblocking(False)
        if unix_type == socket.SOCK_STREAM:
            sock.listen()
        assert rehearsed(type=kind, path=path).type == "file"
        with pytest.raises(BlockingIOError):
            sock.accept() if unix_type == socket.SOCK_STREAM else sock.recv(1)


@pytest.mark.parametrize("fields", [{"type": "stdout"}, {"type": "sink"}, {"type": "syslog"}])
def test_what_nobody_notices_stays(fields: dict[str, object]) -> None:
    assert rehearsed(**fields) == SerialSpec(**fields)  # type: ignore[arg-type]  # as named


@pytest.mark.parametrize(
    "fields",
    [
        {"type": "pty"},
        {"type": "pty", "hardware": "virtio-console"},
        {"type": "unix-stream", "path": "stream", "input_unix_stream": True},
        {"type": "file", "path": "new", "input": "input"},
        {"type": "sink", "input": "input"},
    ],
    ids=str,
)
def test_port_keeps_as_many_ends_as_it_would_have(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fields: dict[str, object]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "input").write_text("typed")
    with ExitStack() as stack:
        sock = stack.enter_context(socket.socket(socket.AF_UNIX))
        sock.bind("stream")
        sock.listen()
        real = open_ends(SerialSpec(**fields))  # type: ignore[arg-type]  # as named
        stack.callback(real.close)
        ends = open_ends(rehearsed(**fields))
        stack.callback(ends.close)
        assert (ends.target is None) == (real.target is None)
        assert (ends.input is None) == (real.input is None)


@pytest.mark.parametrize(
    "fields",
    [
        {"type": "file", "path": "."},
        {"type": "file", "path": "nowhere/new.log"},
        {"type": "unix-stream", "path": "nowhere"},
        {"type": "unix", "path": "nowhere"},
        {"type": "unix-stream", "path": "plain"},
        {"type": "sink", "input": "nowhere"},
        {"type": "sink", "input": "."},
    ],
    ids=str,
)
def test_error_is_that_of_a_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fields: dict[str, object]
) -> None:
    monkeypatch.chdir(tmp_path)
    for opener in (open_unix, open_unix_stream):
        monkeypatch.setattr(opener, "__kwdefaults__", {"wait_seconds": 0.0})
    (tmp_path / "plain").write_text("")
    with pytest.raises(HostError) as expected:
        open_ends(SerialSpec(**fields))  # type: ignore[arg-type]  # as named
    with pytest.raises(HostError) as found:
        rehearsed(**fields)
    assert describe(found.value) == describe(expected.value)
