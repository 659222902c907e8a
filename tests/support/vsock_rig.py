# SPDX-License-Identifier: BSD-3-Clause
"""A vsock device between a driver that the test plays and real sockets of the host.

The driver's side is written from virtio 1.3 §5.10 and from nothing of ours.
"""

from __future__ import annotations

import select
import socket
import struct
from typing import TYPE_CHECKING, NamedTuple

from crosvm_py.device_process.vsock_broker import Broker
from devices.virtio.vsock.common import VsockSpec
from devices.virtio.vsock.device import Vsock
from sys_util.channel import socket_pair
from sys_util.errors import ChannelClosed
from sys_util.guest_memory import GuestMemory
from tests.support.device_context import DriverSide

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

RX, TX, EVENT = 0, 1, 2
STREAM, SEQPACKET = 1, 2
REQUEST, RESPONSE, RST, SHUTDOWN, RW, CREDIT_UPDATE, CREDIT_REQUEST = range(1, 8)
SHUT_RECEIVE, SHUT_SEND, SHUT_BOTH = 1, 2, 3
EOM, EOR = 1, 2

HEADER = struct.Struct("<QQIIIHHIII")
CID = 42
HOST = 2
GUEST_BUFFER = 256 * 1024
DEVICE_FDS = 3  # what a device without connections listens to: two sockets, and its broker
BUFFER = 4096


class Packet(NamedTuple):
    """A packet as one of both sides wrote it."""

    src_cid: int = CID
    dst_cid: int = HOST
    src_port: int = 1000
    dst_port: int = 52
    len: int = 0
    type: int = STREAM
    op: int = RW
    flags: int = 0
    buf_alloc: int = GUEST_BUFFER
    fwd_cnt: int = 0
    data: bytes = b""

    def header(self) -> bytes:
        return HEADER.pack(*self[:10])


class VsockRig:
    """The device, its driver, and its socket at ``folder / "v"``."""

    def __init__(self, folder: Path, *, size: int = 64, without: int = 1 << 29) -> None:
        self.path = folder / "v"
        self.listeners = [
            self._listen(f"{self.path}", socket.SOCK_STREAM),
            self._listen(f"{self.path}.seqpacket", socket.SOCK_SEQPACKET),
        ]
        fds = [listener.detach() for listener in self.listeners]
        self.memory = GuestMemory.create([(0, 4 << 20)])
        self.device = self.new_device(fds)
        self.driver = DriverSide(self.device, self.memory, without=without)
        self.size = size
        self._sockets: list[socket.socket] = []

    def new_device(self, listeners: Sequence[int]) -> Vsock:
        """Return a device for these listeners, with a broker of its own, which answers here."""
        devices_end, brokers_end = socket_pair()
        self.broker = Broker(brokers_end, f"{self.path}".encode())
        return Vsock(VsockSpec(CID), [*listeners, devices_end.detach()])

    def _listen(self, path: str, kind: int, backlog: int = 128) -> socket.socket:
        sock = socket.socket(socket.AF_UNIX, kind | socket.SOCK_NONBLOCK)
        sock.bind(path)
        sock.listen(backlog)
        return sock

    def start(self, buffers: int = 32) -> None:
        self.driver.start(RX, TX, size=self.size)
        self.driver.start_queue(EVENT)
        self.offer(buffers)

    def offer(self, buffers: int, length: int = HEADER.size + BUFFER) -> None:
        """Give the device receive buffers."""
        for _ in range(buffers):
            self.driver.queues[RX].submit(into=[length])
        self.driver.kick(RX)
        self.settle()

    def settle(self) -> None:
        """Let the device see everything that there is to be seen."""
        context = self.driver.context
        for _ in range(10_000):
            context.advance(0)
            poll = select.poll()
            for fd, (_, events) in context.fds.items():
                poll.register(fd, events)
            answered = self.serve_broker()
            ready = poll.poll(0)
            if not ready and not answered:
                return
            for fd, events in ready:
                if fd in context.fds:
                    context.fds[fd][0](events)
            context.advance(0)
        raise AssertionError("the device turns in circles")

    def serve_broker(self) -> bool:
        """Let the broker answer one question; return whether there was one."""
        try:
            return self.broker.serve()
        except ChannelClosed:  # its device has gone, and the next one has another
            return False

    def pass_time(self, seconds: float) -> None:
        self.driver.context.advance(seconds)
        self.settle()

    # The guest

    def send(self, op: int, payload: bytes = b"", **fields: int) -> None:
        """Send a packet, of which ``fields`` say what is unusual."""
        facts = Packet(op=op, len=len(payload))._asdict() | fields
        self.send_raw(Packet(**facts).header() + payload)

    def send_raw(self, *parts: bytes) -> None:
        tx = self.driver.queues[TX]
        tx.submit(parts)
        self.driver.kick(TX)
        self.settle()
        tx.collect()

    def packets(self) -> list[Packet]:
        """Return what the guest received since the last call, and offer the buffers again."""
        self.settle()
        rx = self.driver.queues[RX]
        found = []
        while used := rx.take_used():
            for head, length in used:
                request = rx.requests[head]
                data = b"".join(self.memory.read(at, size) for at, size in request.answers)
                fields = HEADER.unpack(data[: HEADER.size])
                assert length == HEADER.size + fields[4]
                found.append(Packet(*fields)._replace(data=data[HEADER.size : length]))
                rx.stage(head)
            rx.publish()
            self.driver.kick(RX)
            self.settle()
        return found

    def ops(self) -> list[int]:
        return [packet.op for packet in self.packets()]

    # The host

    def listen(self, port: int, kind: int = socket.SOCK_STREAM, backlog: int = 8) -> socket.socket:
        """Wait for the guest at a port of the host."""
        sock = self._listen(f"{self.path}_{port}", kind, backlog)
        self._sockets.append(sock)
        return sock

    def connect(self, line: bytes = b"", kind: int = socket.SOCK_STREAM) -> socket.socket:
        """Connect to the device's socket and write ``line``."""
        sock = socket.socket(socket.AF_UNIX, kind)
        self._sockets.append(sock)
        suffix = ".seqpacket" if kind == socket.SOCK_SEQPACKET else ""
        sock.connect(f"{self.path}{suffix}")
        sock.setblocking(False)
        if line:
            sock.send(line)
        self.settle()
        return sock

    def keep(self, sock: socket.socket) -> socket.socket:
        sock.setblocking(False)
        self._sockets.append(sock)
        return sock

    def open_from_guest(
        self,
        port: int = 52,
        kind: int = STREAM,
        src_port: int = 1000,
        buf_alloc: int = GUEST_BUFFER,
    ) -> socket.socket:
        """Open a connection as the guest; return the host's end."""
        unix = socket.SOCK_STREAM if kind == STREAM else socket.SOCK_SEQPACKET
        with self._listen(f"{self.path}_{port}", unix) as listener:
            self.send(REQUEST, dst_port=port, src_port=src_port, type=kind, buf_alloc=buf_alloc)
            host, _ = listener.accept()
        (self.path.parent / f"v_{port}").unlink()
        self.keep(host)
        ops = self.ops()
        assert ops == [RESPONSE], ops
        return host

    def open_from_host(self, port: int = 80) -> tuple[socket.socket, int]:
        """Open a connection as the host; return its socket and its port."""
        sock = self.connect(b"CONNECT %d\n" % port)
        (request,) = self.packets()
        assert (request.op, request.dst_port) == (REQUEST, port)
        self.send(RESPONSE, src_port=port, dst_port=request.src_port)
        assert sock.recv(100) == b"OK %d\n" % request.src_port
        return sock, request.src_port

    def close(self) -> None:
        for sock in self._sockets:
            sock.close()
        self.driver.reset()
        self.device.close()
        self.broker.channel.close()
        self.driver.close()
        self.memory.close()


def closed(sock: socket.socket) -> bool:
    """Return whether the device closed its end and everything before that was read."""
    try:
        return sock.recv(1) == b""
    except ConnectionResetError:
        return True
