# SPDX-License-Identifier: BSD-3-Clause
"""Rigs for the devices that serve their queues themselves: network card, vsock, console."""

from __future__ import annotations

import fcntl
import os
import socket
import struct
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from devices.virtio.console.backlog import backlogs_bytes
from devices.virtio.console.device import Console, ConsoleSpec
from devices.virtio.rate_limiter import RateLimits
from sys_util.event_loop import EPOLLIN, EPOLLOUT
from sys_util.tap import TUNGETIFF
from tests.fuzz.kinds import spoil_saved
from tests.fuzz.source import number, one_in, pick
from tests.support.console_driver import DATA_PORT, LONE, Pipes
from tests.support.device_context import DriverSide
from tests.support.net_rig import PLAIN, NetRig, frame, header
from tests.support.vsock_rig import HEADER, HOST, TX, Packet, VsockRig

if TYPE_CHECKING:
    from devices.virtio.console.device import PortSpec
    from tests.fuzz.kinds import Request
    from tests.fuzz.source import Source


_TUN_REQUESTS = 0x54  # 'T', the type of every TUN ioctl
_real_ioctl = fcntl.ioctl


def _ioctl_without_a_tap(fd: int, request: int, argument: int | bytes = 0) -> int | bytes:
    """Answer for the TAP that is not there."""
    if request == TUNGETIFF:
        return bytes(40)
    if request >> 8 & 0xFF == _TUN_REQUESTS and request >> 30:
        return 0
    return _real_ioctl(fd, request, argument)


class NetKind:
    """A network card on a datagram socket that plays the TAP, or on a stream like passt's."""

    MAX_ARRIVALS = 16

    def __init__(self, source: Source) -> None:
        setattr(fcntl, "ioctl", _ioctl_without_a_tap)  # noqa: B010 - it has overloads for mypy
        self._tap = one_in(source, 2)
        # Every chain is watched, which the engine knows nothing of.
        pairs = 2 if self._tap else 1
        self._rig = NetRig(tap=self._tap, pairs=pairs, limits=RateLimits(), engine=False)
        self.side = self._rig.driver
        self._arrivals = 0  # since the last good driver took everything

    def request(self, source: Source, queue: int) -> Request:
        if queue == len(self.side.device.queue_sizes) - 1:
            command = struct.pack("<BB", source.below(7), source.below(6))
            return [command, source.data(source.below(20))], [1]
        if queue % 2 == 0:
            return [], [pick(source, (12, 100, 1526, 4096))]
        fields = [number(source, 16) for _ in range(4)]
        head = header(source.below(8), pick(source, (0, 1, 3, 4, 0x81, 5)), *fields)
        return [head if one_in(source, 2) else PLAIN, frame(source.below(1600))], []

    def host_acts(self, source: Source) -> None:
        for host in self._rig.hosts:
            self._take(host)
        if self._arrivals < self.MAX_ARRIVALS:
            self._arrivals += 1
            self._send(frame(14 + source.below(3000)))

    def restart(self, source: Source) -> None:
        spoil_saved(source, self.side.context.saved)
        self._rig.restart()

    def _send(self, data: bytes) -> None:
        message = PLAIN + data if self._tap else struct.pack(">I", len(data)) + data
        for host in self._rig.hosts:
            try:
                host.send(message)
            except BlockingIOError:
                continue

    def _take(self, end: socket.socket) -> bytes:
        """Return what is there to be read."""
        found = b""
        try:
            while data := end.recv(1 << 17):
                found = data if self._tap else found + data
        except BlockingIOError:
            return found
        raise AssertionError("the device has closed its end")

    def serves(self) -> None:
        self._arrivals = 0
        self._take(self._rig.host)
        self.side.start(0, 1, size=64)
        self._rig.offer(*[4096] * 32)
        for _ in range(self.MAX_ARRIVALS + 1):
            if self._rig.end_fd in self.side.context.fds:
                self.side.context.fire(self._rig.end_fd, EPOLLIN | EPOLLOUT)
        self._rig.send(PLAIN + frame(60))
        assert self._take(self._rig.host).endswith(frame(60))
        self._send(frame(90))
        self.side.context.fire(self._rig.end_fd)
        received = [data for data in self._rig.received() if data]
        assert received[-1].endswith(frame(90))

    def close(self) -> None:
        setattr(fcntl, "ioctl", _real_ioctl)  # noqa: B010 - see above
        self._rig.close()
        self._rig.memory.close()


class VsockKind:
    """vsock with real sockets on the host's side."""

    def __init__(self, _source: Source) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="fuzz")
        self._rig = VsockRig(Path(self._folder.name))
        self.side = self._rig.driver
        entrance = self._rig.device._muxer._entrance
        self._kept = [os.dup(listener.fileno()) for listener, _ in entrance._listeners]
        self._listeners = [self._rig.listen(1), self._rig.listen(2, socket.SOCK_SEQPACKET)]
        self._ends: list[socket.socket] = []

    def request(self, source: Source, queue: int) -> Request:
        if queue != TX:
            return [], [pick(source, (HEADER.size, HEADER.size + 1, 100, 4096 + HEADER.size))]
        data = source.data(pick(source, (0, 0, 1, 100, 3000)))
        packet = Packet(
            src_cid=42 if not one_in(source, 20) else number(source, 64),
            dst_cid=HOST if not one_in(source, 20) else number(source, 64),
            src_port=pick(source, (1, 2, 3, 1 << 30)),
            dst_port=pick(source, (1, 2, 3)),
            len=len(data) if not one_in(source, 20) else number(source, 32),
            type=pick(source, (1, 1, 1, 2, 2, 0, 9)),
            op=pick(source, (0, 1, 1, 1, 2, 3, 4, 5, 5, 5, 5, 5, 6, 7, 8)),
            flags=pick(source, (0, 1, 2, 3, 0xFFFF_FFFF)),
            buf_alloc=pick(source, (0, 1, 1000, 1 << 16, 0xFFFF_FFFF)),
            fwd_cnt=pick(source, (0, 0, 0, 0, 10, 0x8000_0000)),
        )
        return [packet.header() + data], []

    def host_acts(self, source: Source) -> None:
        try:
            self._act(source)
        except OSError:
            return

    def restart(self, source: Source) -> None:
        spoil_saved(source, self.side.context.saved)
        self._rig.device._muxer.close()
        fds = [os.dup(fd) for fd in self._kept]
        self._rig.broker.channel.close()
        self._rig.device = self._rig.new_device(fds)
        self.side.replace(self._rig.device)

    def _act(self, source: Source) -> None:
        kind = source.below(5)
        if kind == 0 and len(self._ends) < 20:
            self._ends.append(self._rig.keep(pick(source, self._listeners).accept()[0]))
        elif kind == 1 and len(self._ends) < 20:
            end = socket.socket(socket.AF_UNIX)
            self._ends.append(self._rig.keep(end))
            end.connect(f"{self._rig.path}")
            end.send(b"CONNECT %d\n" % source.below(4))
        elif self._ends:
            end = pick(source, self._ends)
            if kind == 2:
                end.send(bytes(source.below(5000)))
            elif kind == 3:
                end.recv(10_000)
            else:
                self._ends.remove(end)
                end.close()

    def serves(self) -> None:
        self._forget()
        self._rig.start(buffers=8)
        host = self._rig.open_from_guest(port=99, src_port=9999)
        self._rig.send(5, b"alive", src_port=9999, dst_port=99)
        assert host.recv(100) == b"alive"
        host.close()
        self._forget()

    def _forget(self) -> None:
        for end in self._ends:
            end.close()
        self._ends.clear()
        self._rig._sockets[:] = self._listeners
        for listener in self._listeners:
            try:
                while True:
                    listener.accept()[0].close()
            except BlockingIOError:
                continue
        self._rig.settle()

    def close(self) -> None:
        self._forget()
        self._rig.close()
        for fd in self._kept:
            os.close(fd)
        self._folder.cleanup()


class _Consoles(Pipes):
    """One console process after the other, over the same pipes and the same backlogs."""

    def __init__(self, *specs: PortSpec) -> None:
        self._spec = ConsoleSpec(specs, has_backlogs=True)
        self.backlogs = os.memfd_create("backlogs", os.MFD_CLOEXEC)
        os.ftruncate(self.backlogs, backlogs_bytes(len(specs)))
        super().__init__(*specs)
        self.fds.append(self.backlogs)

    def take(self, console: Console) -> None:
        del console
        self.console = self._build()
        self.driver = DriverSide(self.console, self.memory)

    def take_over(self) -> None:
        """Let a new process take the place of this one."""
        self.console.close()
        self.console = self._build()
        self.driver.replace(self.console)

    def _build(self) -> Console:
        return Console(self._spec, [*map(os.dup, self.device_fds), self.backlogs])

    def close(self) -> None:
        super().close()
        for fd in self.device_fds:
            os.close(fd)


class ConsoleKind:
    """A console with three ports whose ends are pipes."""

    def __init__(self, source: Source) -> None:
        ports = (LONE,) if one_in(source, 3) else (LONE, DATA_PORT, DATA_PORT)
        self._pipes = _Consoles(*ports)
        self.side = self._pipes.driver

    def request(self, source: Source, queue: int) -> Request:
        if queue == 3:
            fields = (source.below(4), source.below(10), number(source, 16))
            return [struct.pack("<IHH", *fields)], []
        if queue % 2:
            return [source.data(source.below(3000))], []
        return [], [pick(source, (1, 8, 64, 4096))]

    def host_acts(self, source: Source) -> None:
        if one_in(source, 2):
            self._pipes.read(source.below(len(self._pipes.outputs)))
            return
        try:
            os.write(pick(source, self._pipes.inputs), source.data(source.below(300)))
        except BlockingIOError:
            return

    def restart(self, source: Source) -> None:
        spoil_saved(source, self.side.context.saved)
        if one_in(source, 2):
            at = number(source, 16) % (os.fstat(self._pipes.backlogs).st_size - 8)
            os.pwrite(self._pipes.backlogs, source.data(8), at & ~7)
        self._pipes.take_over()

    def serves(self) -> None:
        self._drain()
        self.side.features &= ~2  # one port
        self.side.start(0, 1, size=16)
        assert len(self._pipes.transmit(b"good")) == 1
        assert self._drain().endswith(b"good")

    def _drain(self) -> bytes:
        """Read what comes out, also of what an earlier process left, until nothing waits."""
        self.side.context.advance(0)
        found = self._pipes.read()
        while self._pipes.output_fd() in self.side.context.fds:
            self._pipes.room()
            found += self._pipes.read()
        return found

    def close(self) -> None:
        self._pipes.close()
