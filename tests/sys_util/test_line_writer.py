# SPDX-License-Identifier: BSD-3-Clause
"""Write lines to readers that stop: the writer never waits, and no line is written in part only."""

from __future__ import annotations

import os
import select
import socket
from typing import TYPE_CHECKING

import pytest

from sys_util import nonblocking
from sys_util.line_writer import LineWriter
from sys_util.nonblocking import PIPE_BUF

if TYPE_CHECKING:
    from collections.abc import Iterator


class Shared:
    """A blocking descriptor that another program gave us, and its reader's end."""

    def __init__(self, kind: str) -> None:
        if kind == "terminal":
            self.reader, self.fd = os.openpty()
        elif kind == "socket":
            left, right = socket.socketpair()
            self.reader, self.fd = left.detach(), right.detach()
        else:
            self.reader, self.fd = os.pipe()
        self.other = os.dup(self.fd)  # the other program's
        self.writer = LineWriter(self.fd, lambda count: f"{count} lost")

    def read(self) -> bytes:
        """Read all that can be read now."""
        found = b""
        while select.select([self.reader], [], [], 0)[0]:
            found += os.read(self.reader, 65536)
        return found.replace(b"\r\n", b"\n")

    def close(self) -> None:
        for fd in (self.reader, self.fd, self.other):
            os.close(fd)


@pytest.fixture(params=["pipe", "terminal", "socket", "pipe of others", "terminal of others"])
def shared(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Shared]:
    kind, _, others = request.param.partition(" of ")
    if others:
        monkeypatch.setattr(nonblocking, "reopen", lambda _fd, _flags: None)
    shared = Shared(kind)
    shared.writer.take_over()
    yield shared
    shared.close()


def test_line_arrives(shared: Shared) -> None:
    shared.writer.write("hello")
    assert shared.read() == b"hello\n"


def test_description_of_others_stays_blocking(shared: Shared) -> None:
    shared.writer.write("hello")
    assert os.get_blocking(shared.other)
    assert shared.read() == b"hello\n"


def test_reader_that_stops_makes_nobody_wait_and_is_told_what_is_missing(shared: Shared) -> None:
    for number in range(20_000):
        shared.writer.write(f"line {number} {'x' * 50}")
    found = b""
    while b" lost" not in found:
        found += shared.read()
        shared.writer.write("again")
    found += shared.read()
    following = 0  # the number of the next line, if no line is lost before it
    told = [line for line in found.decode().split("\n") if line]
    for line in told:
        if line.endswith(" lost"):
            following += int(line.split()[0])
        elif line != "again":
            assert line == f"line {following} {'x' * 50}", "a line is incomplete, or not reported"
            following += 1
    assert following >= 20_000  # the "again" lines can be lost too
    assert told[-1] == "again"


@pytest.mark.parametrize("character", ["x", "é", "\U0001f600"])
def test_long_line_is_cut_to_what_a_pipe_takes_as_a_whole(character: str) -> None:
    shared = Shared("pipe")
    shared.writer.take_over()
    for _ in range(100):
        shared.writer.write(character * 5000)
    lines = shared.read().split(b"\n")[:-1]
    assert len(lines) > 10
    for line in lines:
        assert PIPE_BUF - 8 < len(line) + 1 <= PIPE_BUF
        assert line.decode() == character * (len(line.decode()) - 1) + "…"
    shared.close()


def test_lines_of_several_processes_in_one_pipe_are_whole() -> None:
    shared = Shared("pipe")
    children = []
    for letter in "ab":
        pid = os.fork()
        if pid == 0:
            shared.writer.take_over()
            for _ in range(300):
                shared.writer.write(letter * 3000)
            os._exit(0)
        children.append(pid)
    os.close(shared.fd)
    os.close(shared.other)
    found = b""
    while chunk := os.read(shared.reader, 65536):
        found += chunk
    for pid in children:
        os.waitpid(pid, 0)
    os.close(shared.reader)
    lines = [line for line in found.split(b"\n")[:-1] if not line.endswith(b"lost")]
    assert {bytes(set(line)) for line in lines} <= {b"a", b"b"}
    assert {len(line) for line in lines} == {3000}


def test_patience_waits_for_a_slow_reader() -> None:
    shared = Shared("pipe")
    while select.select([], [shared.fd], [], 0)[1]:
        os.write(shared.fd, b"x" * PIPE_BUF)
    pid = os.fork()
    if pid == 0:
        select.select([], [], [], 0.05)
        os.read(shared.reader, 1 << 20)
        os._exit(0)
    shared.writer.write("last words", patience_seconds=60.0)
    os.waitpid(pid, 0)
    assert shared.read() == b"last words\n"
    shared.close()


def test_reader_that_is_gone_is_no_error() -> None:
    shared = Shared("pipe")
    os.close(shared.reader)
    shared.writer.take_over()
    shared.writer.write("nobody listens")
    shared.reader = os.open("/dev/null", os.O_RDONLY)
    shared.close()


def test_file_is_appended_to_where_others_write(tmp_path: os.PathLike[str]) -> None:
    fd = os.open(os.fspath(tmp_path) + "/log", os.O_RDWR | os.O_CREAT)
    writer = LineWriter(fd, str)
    os.write(fd, b"before\n")
    writer.take_over()
    writer.write("ours")
    os.write(fd, b"after\n")
    assert os.pread(fd, 100, 0) == b"before\nours\nafter\n"
    os.close(fd)
