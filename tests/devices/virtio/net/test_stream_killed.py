# SPDX-License-Identifier: BSD-3-Clause
"""The socket to user-mode networking, when a process at one end of it is killed at any moment."""

from __future__ import annotations

import fcntl
import mmap
import os
import random
import select
import socket
import struct
import zlib
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

from devices.virtio.net.ends import EndGoneError
from devices.virtio.net.stream import StreamEnd
from tests.support.net_rig import PLAIN, STREAM_LENGTHS, frame, on_wire, set_send_buffer
from tests.support.processes import forked

if TYPE_CHECKING:
    from collections.abc import Iterator

# What a peer writes at once: passt takes many frames from its own sockets before.
BATCH_FRAMES = 16
KILLS = 30
FRAMES = 4000
# A device that is that far ahead of a test that gets no time waits for it: it must not be done
# before it is killed.
AHEAD_REPORTS = 64
REPORT = struct.Struct("<III")


def lengths_of(seed: int) -> list[int]:
    choose = random.Random(seed)
    return [choose.choice(STREAM_LENGTHS) for _ in range(FRAMES)]


def numbered(number: int, length: int) -> bytes:
    """Return a frame that tells its number."""
    return struct.pack(">I", number) + frame(64, number)[:10] + bytes(length - 14)


def read_exactly(fd: int, length: int) -> bytes:
    data = b""
    while len(data) < length:
        more = os.read(fd, length - len(data))
        assert more, "the other process has ended"
        data += more
    return data


def talk(sock: socket.socket) -> None:
    """Send every frame as passt does: what there is room for, and the rest of a frame waiting."""
    frames = [on_wire(numbered(at, length)) for at, length in enumerate(lengths_of(2))]
    while frames:
        batch, frames = frames[:BATCH_FRAMES], frames[BATCH_FRAMES:]
        sock.sendall(b"".join(batch))


def report_frames(fd: int, report_fd: int) -> None:
    """Be a device that says what it receives."""
    end = StreamEnd(fd)
    room = memoryview(bytearray(70000))
    while True:
        try:
            length = end.receive([room])
        except BlockingIOError:
            if not end.commit():
                os.sched_yield()
            continue
        except EndGoneError as error:
            if "passt has ended" in str(error):
                os.write(report_fd, REPORT.pack(FRAMES, 0, 0))
            return
        data = room[12:length]
        (number,) = struct.unpack_from(">I", data)
        os.write(report_fd, REPORT.pack(number, len(data), zlib.crc32(data)))


@contextmanager
def reporting(fd: int) -> Iterator[int]:
    """Have a device that is killed in the end; yield where it says what it received."""
    report_fd, device_fd = os.pipe2(os.O_DIRECT | os.O_CLOEXEC)  # a report takes a page
    fcntl.fcntl(device_fd, fcntl.F_SETPIPE_SZ, AHEAD_REPORTS * mmap.PAGESIZE)
    try:
        with forked(lambda: report_frames(fd, device_fd)):
            os.close(device_fd)
            yield report_fd
    finally:
        os.close(report_fd)


def test_receiver_killed_at_any_moment_leaves_whole_frames() -> None:
    peer, ours = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    lengths, moments = lengths_of(2), random.Random(3)
    number, received, kills = -1, 0, 0
    with peer, ours, forked(lambda: talk(peer)):
        peer.close()
        while number < FRAMES:
            with reporting(ours.fileno()) as report_fd:
                last = -1  # what was received and not read comes again
                for _ in range(moments.randrange(1, 2 * FRAMES // KILLS)):
                    number, length, crc = REPORT.unpack(read_exactly(report_fd, REPORT.size))
                    assert last < number
                    last = number
                    if number == FRAMES:
                        break
                    assert length == lengths[number]
                    assert crc == zlib.crc32(numbered(number, length))
                    received += 1
            kills += 1
    assert kills > KILLS / 4
    assert received > FRAMES / 4


def send_frames(fd: int, first: int) -> None:
    """Be a device that sends as much as it can."""
    end = StreamEnd(fd)
    for number, length in enumerate(lengths_of(4), first):
        frame_parts = [memoryview(numbered(number, length))]
        while True:
            with suppress(BlockingIOError):
                end.send(PLAIN, frame_parts)
                break
            os.sched_yield()


def test_sender_killed_at_any_moment_leaves_whole_frames() -> None:
    peer, ours = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    moments = random.Random(5)
    with peer, ours:
        set_send_buffer(ours.fileno(), 100_000)
        for kill in range(KILLS):
            first = kill << 16
            with forked(lambda: send_frames(ours.fileno(), first)):  # noqa: B023 - used at once
                _receive_until(peer, first + moments.randrange(100))
                while select.select([], [ours], [], 0)[1]:
                    os.sched_yield()  # until it has filled the socket


def _receive_until(peer: socket.socket, last: int) -> None:
    """Read frames, some of them of an earlier process, until this one has come."""
    number = -1
    while number < last:
        (length,) = struct.unpack(">I", read_exactly(peer.fileno(), 4))
        assert 14 <= length <= 65550
        data = read_exactly(peer.fileno(), length)
        (number,) = struct.unpack_from(">I", data)
        assert data == numbered(number, length)
