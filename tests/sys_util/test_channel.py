# SPDX-License-Identifier: BSD-3-Clause
"""The channel: messages with descriptors, and a peer that breaks every rule."""

from __future__ import annotations

import array
import os
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import pytest

from sys_util import wire
from sys_util.channel import MAX_MESSAGE_FDS, Channel, socket_pair
from sys_util.errors import ChannelClosed, ChannelFull, ProtocolError

pytestmark = pytest.mark.usefixtures("steady_fds")


@dataclass(frozen=True, slots=True)
class Note:
    TYPE: ClassVar[int] = 1
    FIELDS: ClassVar[tuple[wire.Check, ...]] = (wire.text(60_000),)
    words: str


CODEC = wire.Codec((Note,))


@pytest.fixture
def pair() -> Iterator[tuple[Channel, socket.socket]]:
    ours, theirs = socket_pair()
    channel = Channel(ours, CODEC)
    yield channel, theirs
    channel.close()
    theirs.close()


def open_fds() -> set[str]:
    return set(os.listdir("/proc/self/fd"))


def test_message_arrives_with_its_descriptors() -> None:
    ours, theirs = socket_pair()
    sender, receiver = Channel(ours, CODEC), Channel(theirs, CODEC)
    read_end, write_end = os.pipe()
    sender.send(Note("hello"), [write_end])
    received = receiver.receive()
    assert received is not None
    message, fds = received
    assert message == Note("hello")
    os.write(fds[0], b"x")
    assert os.read(read_end, 1) == b"x"
    assert not os.get_inheritable(fds[0])
    for fd in (read_end, write_end, fds[0]):
        os.close(fd)
    sender.close()
    receiver.close()


def test_receive_of_nothing_returns_none(pair: tuple[Channel, socket.socket]) -> None:
    assert pair[0].receive() is None


def test_receive_after_the_peer_closed_takes_what_it_sent_first(
    pair: tuple[Channel, socket.socket],
) -> None:
    channel, peer = pair
    peer.send(wire.encode(Note("last words")))
    peer.close()
    assert channel.receive() == (Note("last words"), [])
    with pytest.raises(ChannelClosed):
        channel.receive()


@pytest.mark.parametrize("sends_again", [False, True], ids=["at once", "after a send"])
def test_last_words_of_a_peer_that_had_not_read_everything_arrive(
    pair: tuple[Channel, socket.socket], sends_again: bool
) -> None:
    channel, peer = pair
    channel.send(Note("unread"))
    peer.send(wire.encode(Note("last words")))
    peer.close()
    if sends_again:
        with pytest.raises(ChannelClosed):
            channel.send(Note("x"))
    assert channel.receive() == (Note("last words"), [])
    with pytest.raises(ChannelClosed):
        channel.receive()


def test_send_to_a_peer_that_closed_says_so(pair: tuple[Channel, socket.socket]) -> None:
    channel, peer = pair
    peer.close()
    with pytest.raises(ChannelClosed):
        channel.send(Note("x"))


def test_send_to_a_peer_that_does_not_read_never_blocks(
    pair: tuple[Channel, socket.socket],
) -> None:
    channel, _ = pair

    def flood() -> None:
        for _ in range(10_000):
            channel.send(Note("x" * 1000))

    with pytest.raises(ChannelFull, match="does not read"):
        flood()


@pytest.mark.parametrize(
    ("payload", "reason"),
    [
        pytest.param(b"\xc1", "not msgpack", id="garbage"),
        pytest.param(wire.encode(Note("x" * 60_000)) + bytes(9000), "larger", id="oversized"),
    ],
)
def test_receive_hostile_message_closes_its_descriptors(
    pair: tuple[Channel, socket.socket], payload: bytes, reason: str
) -> None:
    channel, peer = pair
    before = open_fds()
    fds = array.array("i", [0] * 3)
    peer.sendmsg([payload], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, fds)])
    with pytest.raises(ProtocolError, match=reason):
        channel.receive()
    assert open_fds() == before


def test_receive_more_descriptors_than_any_message_has_is_refused(
    pair: tuple[Channel, socket.socket],
) -> None:
    channel, peer = pair
    before = open_fds()
    fds = array.array("i", [0] * (MAX_MESSAGE_FDS + 8))
    peer.sendmsg([wire.encode(Note(""))], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, fds)])
    with pytest.raises(ProtocolError, match="lost descriptors"):
        channel.receive()
    assert open_fds() == before
