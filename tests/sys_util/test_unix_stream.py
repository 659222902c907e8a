# SPDX-License-Identifier: BSD-3-Clause
"""What the kernel keeps of a stream socket for the next process that uses it."""

from __future__ import annotations

import os
import socket
from typing import TYPE_CHECKING

import pytest

from sys_util.unix_stream import FIONREAD, SO_PEEK_OFF, TIOCOUTQ, UnixStream

if TYPE_CHECKING:
    from collections.abc import Iterator


class Ends:
    """A stream and its peer."""

    def __init__(self) -> None:
        self.peer, ours = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        self.stream = UnixStream(ours.detach())

    def read(self, length: int) -> bytes:
        room = memoryview(bytearray(length))
        return bytes(room[: self.stream.read([room[:1], room[1:]])])

    def peek(self, length: int) -> bytes:
        room = memoryview(bytearray(length))
        return bytes(room[: self.stream.peek(room)])


@pytest.fixture
def ends() -> Iterator[Ends]:
    ends = Ends()
    yield ends
    ends.stream.close()
    ends.peer.close()


def test_abi() -> None:
    assert (SO_PEEK_OFF, FIONREAD, TIOCOUTQ) == (42, 0x541B, 0x5411)


def test_peek_leaves_everything(ends: Ends) -> None:
    ends.peer.sendall(b"abc")
    ends.peer.sendall(b"def")
    assert ends.peek(10) == ends.peek(10) == b"abcdef"
    assert ends.stream.readable_bytes() == 6
    assert ends.read(10) == b"abcdef"


def test_nothing_waits(ends: Ends) -> None:
    with pytest.raises(BlockingIOError):
        ends.peek(1)
    with pytest.raises(BlockingIOError):
        ends.read(1)
    while ends.stream.queued_bytes() < ends.stream.send_buffer_bytes:
        ends.stream.write([bytes(1 << 16)])
    with pytest.raises(BlockingIOError):
        ends.stream.write([b"x"])


def test_end_is_seen(ends: Ends) -> None:
    ends.peer.close()
    assert ends.peek(1) == ends.read(1) == b""


def test_announced_bytes_count_down_for_another_process(ends: Ends) -> None:
    ends.peer.sendall(b"abcdefgh")
    assert ends.stream.announced_bytes() == 0
    ends.stream.announce(7)
    assert ends.read(5) == b"abcde"
    other = UnixStream(os.dup(ends.stream.fd))
    assert other.announced_bytes() == 2
    other.announce(0)
    assert ends.peek(1) == b"f"
    assert other.announced_bytes() == 0
    other.close()


def test_announced_bytes_end_at_nothing(ends: Ends) -> None:
    ends.peer.sendall(b"abcdefgh")
    ends.stream.announce(3)
    ends.read(8)
    assert ends.stream.announced_bytes() == 0
