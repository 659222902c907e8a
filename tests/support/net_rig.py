# SPDX-License-Identifier: BSD-3-Clause
"""A network card with a driver on one side and, in the place of a TAP, a socket on the other."""

from __future__ import annotations

import fcntl
import os
import socket
import struct
from typing import TYPE_CHECKING

from devices.virtio.net.device import Net
from devices.virtio.net.state import NetSpec
from devices.virtio.rate_limiter import RateLimits
from sys_util.guest_memory import GuestMemory
from sys_util.tap import IFF_DETACH_QUEUE, TUNGETIFF
from sys_util.unix_stream import FIONREAD, TIOCOUTQ
from tests.support.device_context import DriverSide
from tests.support.sockets import arrived

if TYPE_CHECKING:
    import pytest

    from devices.virtio.saved_state import SavedState

MAC = bytes.fromhex("525400123456")
PLAIN = bytes(12)
EVENT_IDX = 1 << 29
MRG_RXBUF = 1 << 15
NO_LIMITS = RateLimits()
# The shortest and longest frame of a stream, and those about as long as what is read ahead.
STREAM_LENGTHS = (14, 60, 66, 1514, 9014, 16380, 16381, 32764, 32765, 65534, 65550)


def header(
    flags: int = 0,
    gso: int = 0,
    hdr_len: int = 0,
    gso_size: int = 0,
    start: int = 0,
    offset: int = 0,
) -> bytes:
    return struct.pack("<BBHHHHH", flags, gso, hdr_len, gso_size, start, offset, 0)


def frame(length: int, seed: int = 0) -> bytes:
    """Return an Ethernet frame of this length that differs by its seed."""
    return bytes((at * 7 + seed * 31 + at // 256) & 0xFF for at in range(length))


def ip_frame(length: int, seed: int = 0) -> bytes:
    """Return a frame of this length, 34 or more, with an IPv4 packet in it."""
    ip = struct.pack(">BBHHHBB", 0x45, 0, length - 14, seed & 0xFFFF, 0, 64, 17) + bytes(10)
    return MAC + bytes.fromhex("52550a0002020800") + ip + frame(length - 34, seed)


def on_wire(data: bytes) -> bytes:
    """Return a frame as it stands in a stream."""
    return struct.pack(">I", len(data)) + data


def set_send_buffer(fd: int, size_bytes: int) -> None:
    with socket.socket(fileno=os.dup(fd)) as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, size_bytes)


class Ioctls:
    """Note the calls of a device to its TAP."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.calls: list[tuple[int, int | bytes]] = []
        self.attached = [True] * 16  # of the TAP's queues, in the order in which they are asked for
        self._real = fcntl.ioctl
        monkeypatch.setattr(fcntl, "ioctl", self._note)

    def _note(self, fd: int, request: int, argument: int | bytes) -> int | bytes:
        if request in (FIONREAD, TIOCOUTQ):  # of a socket
            return self._real(fd, request, argument)
        if request == TUNGETIFF:
            return struct.pack("=16xH22x", 0 if self.attached.pop(0) else IFF_DETACH_QUEUE)
        self.calls.append((request, argument))
        return 0


class NetRig:
    """One card. ``hosts[i]`` is the far side of its i-th TAP queue, or of its stream."""

    def __init__(
        self,
        *,
        pairs: int = 1,
        tap: bool = True,
        without: int = EVENT_IDX,
        limits: RateLimits = NO_LIMITS,
        saved: SavedState | None = None,
        engine: bool | None = None,
    ) -> None:
        """With ``engine`` native code moves what frames it can; by default, if it is built."""
        kind = socket.SOCK_DGRAM if tap else socket.SOCK_STREAM
        self.hosts: list[socket.socket] = []
        self.ends: list[socket.socket] = []
        for _ in range(pairs):
            host, end = socket.socketpair(socket.AF_UNIX, kind)
            host.setblocking(False)
            end.setblocking(False)
            self.hosts.append(host)
            self.ends.append(end)
        self._engine = engine
        self.spec = NetSpec(MAC, 1500, pairs=pairs, tap=tap, limits=limits)
        self.device = self._start_device()
        self.memory = GuestMemory.create([(0, 16 << 20)])
        self.driver = DriverSide(self.device, self.memory, without=without, saved=saved)

    def _start_device(self) -> Net:
        """Return a device with descriptors of its own."""
        return Net(self.spec, [os.dup(end.fileno()) for end in self.ends], engine=self._engine)

    def restart(self) -> None:
        """Let a new device go on where this one stands, which learns nothing of it."""
        for end in self.device.ends:
            end.close()
        self.device = self._start_device()
        self.driver.replace(self.device)

    @property
    def host(self) -> socket.socket:
        return self.hosts[0]

    @property
    def end_fd(self) -> int:
        return self.device.ends[0].fd

    def listens(self) -> bool:
        """Whether the device waits for frames of the host."""
        return self.end_fd in self.driver.context.fds

    def offer(self, *lengths: int, queue: int = 0) -> None:
        """Offer a receive buffer of each length, and kick."""
        for length in lengths:
            self.driver.queues[queue].submit([], [length])
        self.driver.kick(queue)

    def arrive(self, data: bytes, head: bytes = PLAIN) -> None:
        """Let a frame arrive at the TAP, and the device see that."""
        self.host.send(head + data)
        self.driver.context.fire(self.end_fd)

    def received(self, queue: int = 0) -> list[bytes]:
        """Return what the driver got: header and frame, buffer by buffer."""
        return [data[:used] for _, used, data in self.driver.queues[queue].collect()]

    def send(self, *parts: bytes, queue: int = 1) -> None:
        """Send one frame, header first, in these descriptors."""
        self.driver.queues[queue].submit(list(parts))
        self.driver.kick(queue)

    def sent(self) -> list[bytes]:
        """Return what came out at the host's side."""
        return arrived(self.host)

    def command(self, group: int, command: int, data: bytes = b"", *, queue: int = 2) -> int:
        """Send a control command and return its ack."""
        driver = self.driver.queues[queue]
        driver.submit([struct.pack("<BB", group, command), data], [1])
        self.driver.kick(queue)
        ((_, used, ack),) = driver.collect()
        assert used == 1
        return ack[0]

    def config(self) -> tuple[int | bytes, ...]:
        """Return mac, status, pairs, mtu, speed, duplex as the driver reads them."""
        return struct.unpack("<6sHHHIB", self.device.config())

    def close(self) -> None:
        self.driver.close()
        for sock in (*self.hosts, *self.ends):
            sock.close()
        for end in self.device.ends:
            end.close()
        self.memory.close()
