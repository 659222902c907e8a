# SPDX-License-Identifier: BSD-3-Clause
"""The socket to user-mode networking: whole frames in, whole frames out, however they are cut."""

from __future__ import annotations

import os
import random
import socket
import struct
from contextlib import suppress
from typing import TYPE_CHECKING

import pytest

from devices.virtio.net.stream import StreamEnd
from sys_util.event_loop import EPOLLOUT
from sys_util.unix_stream import SO_PEEK_OFF
from tests.support.net_rig import (
    EVENT_IDX,
    PLAIN,
    STREAM_LENGTHS,
    NetRig,
    frame,
    ip_frame,
    on_wire,
    set_send_buffer,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

HALVES = [
    pytest.param(length, at, id=f"{at}-of-{length}")
    for length in STREAM_LENGTHS
    for at in (1, 4, 5, 17, 9000, length + 3)
    if at < length + 4
]


@pytest.fixture
def rig(lines: list[str]) -> Iterator[NetRig]:
    rig = NetRig(tap=False, without=EVENT_IDX)
    rig.driver.start(0, 1, size=256)
    yield rig
    rig.close()


class Pair:
    """An end and its peer, which is blocking."""

    def __init__(self) -> None:
        self.peer, ours = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        self.fd = ours.detach()
        self.end = StreamEnd(os.dup(self.fd))

    def replace(self) -> None:
        """Let another process's end go on."""
        self.end.close()
        self.end = StreamEnd(os.dup(self.fd))

    def receive(self) -> bytes:
        """Return the next frame."""
        room = memoryview(bytearray(70000))
        length = self._receive([room[:20], room[20:40], room[40:]])
        assert room[:12] == bytes(12)
        return bytes(room[12:length])

    def _receive(self, vectors: list[memoryview]) -> int:
        try:
            return self.end.receive(vectors)
        except BlockingIOError:
            if not self.end.commit():
                raise
            return self.end.receive(vectors)

    def close(self) -> None:
        self.peer.close()
        self.end.close()
        os.close(self.fd)


@pytest.fixture
def pair() -> Iterator[Pair]:
    pair = Pair()
    yield pair
    pair.close()


def test_stream_carries_frames_after_their_length(rig: NetRig) -> None:
    rig.offer(100, 100, 100)
    rig.send(PLAIN, frame(60)[:20], frame(60)[20:])
    assert rig.sent() == [struct.pack(">I", 60) + frame(60)]
    stream = b"".join(struct.pack(">I", 60) + frame(60, seed) for seed in range(3))
    rig.host.send(stream[:90])
    rig.driver.context.fire(rig.end_fd)
    assert [data[12:] for data in rig.received()] == [frame(60)]
    rig.host.send(stream[90:])
    rig.driver.context.fire(rig.end_fd)
    assert [data[12:] for data in rig.received()] == [frame(60, 1), frame(60, 2)]


def test_stream_frames_read_ahead_are_delivered_without_another_event(rig: NetRig) -> None:
    rig.offer(*[100] * 200)
    rig.host.send(b"".join(struct.pack(">I", 60) + frame(60, seed) for seed in range(150)))
    rig.driver.context.fire(rig.end_fd)
    assert rig.driver.context.turns_wanted
    rig.driver.kick(0)
    rig.driver.kick(0)
    assert [data[12:] for data in rig.received()] == [frame(60, seed) for seed in range(150)]


def test_stream_that_is_full_gets_the_rest_later(rig: NetRig) -> None:
    sent = 0
    while EPOLLOUT & rig.driver.context.fds.get(rig.end_fd, (None, 0))[1] == 0:
        rig.send(PLAIN + frame(60000, sent))
        rig.driver.queues[1].collect()
        sent += 1
    arrived = b""
    while EPOLLOUT & rig.driver.context.fds.get(rig.end_fd, (None, 0))[1]:
        arrived += b"".join(rig.sent())
        rig.driver.context.fire(rig.end_fd, EPOLLOUT)
    arrived += b"".join(rig.sent())
    whole = [struct.pack(">I", 60000) + frame(60000, seed) for seed in range(sent)]
    assert arrived == b"".join(whole)


def test_stream_at_its_end_takes_the_link_down(rig: NetRig) -> None:
    rig.offer(2000)
    rig.host.close()
    rig.driver.context.fire(rig.end_fd)
    assert rig.config()[1] == 0
    assert not rig.listens()


def test_stream_short_frames_are_skipped(rig: NetRig) -> None:
    rig.offer(2000, 2000)
    rig.host.send(struct.pack(">I", 3) + b"abc" + struct.pack(">I", 0))
    rig.host.send(struct.pack(">I", 60) + frame(60))
    rig.driver.context.fire(rig.end_fd)
    assert [data[12:] for data in rig.received()] == [frame(60)]


@pytest.mark.parametrize("length", STREAM_LENGTHS)
@pytest.mark.parametrize("before", [0, 100])
def test_receive_any_length(pair: Pair, length: int, before: int) -> None:
    sent = [frame(60, 1)] * before + [frame(length)] + [frame(61, 2)]
    pair.peer.sendall(b"".join(map(on_wire, sent)))
    assert [pair.receive() for _ in sent] == sent
    with pytest.raises(BlockingIOError):
        pair.receive()


@pytest.mark.parametrize(("length", "at"), HALVES)
def test_receive_half_a_frame_waits_for_the_rest(pair: Pair, length: int, at: int) -> None:
    wire = on_wire(frame(length)) + on_wire(frame(60, 1))
    pair.peer.sendall(wire[:at])
    got = []
    for _ in range(3):
        with suppress(BlockingIOError):
            got.append(pair.receive())
    pair.peer.sendall(wire[at:])
    got += [pair.receive() for _ in range(2 - len(got))]
    assert got == [frame(length), frame(60, 1)]


@pytest.mark.parametrize(("length", "at"), HALVES)
def test_receive_half_a_frame_by_each_process_loses_only_that(
    pair: Pair, length: int, at: int
) -> None:
    wire = on_wire(frame(length)) + on_wire(frame(60, 1)) + on_wire(frame(61, 2))
    pair.peer.sendall(wire[:at])
    got = []
    with suppress(BlockingIOError):
        got.append(pair.receive())
    pair.replace()
    with suppress(BlockingIOError):
        got.append(pair.receive())
    pair.replace()
    pair.peer.sendall(wire[at:])
    with suppress(BlockingIOError):
        while True:
            got.append(pair.receive())
    assert got[-2:] == [frame(60, 1), frame(61, 2)]
    assert got[:-2] in ([], [frame(length)])


def test_receive_into_more_pieces_than_the_host_takes(rig: NetRig) -> None:
    rig.driver.queues[0].submit([], [12, *[60] * 1022], indirect=True)
    rig.host.send(on_wire(frame(50000)) + on_wire(frame(60, 1)))
    rig.driver.kick(0)
    rig.offer(70000)
    assert rig.received()[-1][12:] == frame(60, 1)
    assert rig.config()[1] == 1


def test_send_of_more_pieces_than_the_host_takes_leaves_the_link_up(rig: NetRig) -> None:
    data = frame(1024)
    queue = rig.driver.queues[1]
    pieces = [PLAIN + data[:1], *(data[at : at + 1] for at in range(1, 1024))]
    queue.submit(pieces, indirect=True)
    rig.driver.kick(1)
    assert rig.sent() == [struct.pack(">I", 1024) + data]
    rig.send(PLAIN + frame(60))
    assert rig.sent() == [struct.pack(">I", 60) + frame(60)]


def test_receive_announced_nonsense_is_skipped_no_further_than_a_frame(pair: Pair) -> None:
    with socket.socket(fileno=os.dup(pair.fd)) as sock:
        sock.setsockopt(socket.SOL_SOCKET, SO_PEEK_OFF, 0x7FFFFFFF)
    pair.replace()
    pair.peer.settimeout(0)
    with suppress(BlockingIOError):
        while True:
            pair.peer.send(b"\xff" * 4096)
    with pytest.raises(BlockingIOError):
        pair.receive()
    pair.peer.send(on_wire(ip_frame(60)))
    assert pair.receive() == ip_frame(60)


@pytest.mark.parametrize("buffer_bytes", [50_000, 106_496, 400_000])
def test_send_is_whole_or_not_at_all(pair: Pair, buffer_bytes: int) -> None:
    set_send_buffer(pair.fd, buffer_bytes)
    pair.replace()
    pair.peer.settimeout(0)
    choose = random.Random(1)
    frames = [frame(length, seed) for seed, length in enumerate(STREAM_LENGTHS)]
    sent, got = bytearray(), bytearray()
    for _ in range(500):
        data = choose.choice(frames)
        try:
            pair.end.send(PLAIN, [memoryview(data)])
        except BlockingIOError:
            pair.replace()
            got += pair.peer.recv(1 << 20)
        else:
            sent += on_wire(data)
            assert not pair.end.unsent
    with suppress(BlockingIOError):
        while data := pair.peer.recv(1 << 20):
            got += data
    assert got == sent


def test_send_with_hardly_any_buffer_gets_through(pair: Pair) -> None:
    set_send_buffer(pair.fd, 1)
    pair.replace()
    sent, got = on_wire(frame(65550)), bytearray()
    pair.end.send(PLAIN, [memoryview(frame(65550))])
    while len(got) < len(sent):
        got += pair.peer.recv(1 << 20)
        pair.end.flush()
    assert got == sent
