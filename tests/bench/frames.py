# SPDX-License-Identifier: BSD-3-Clause
"""How long a network card on a TAP takes for a frame, by the engine and by Python.

    unshare -n python -m tests.bench.frames [frames]

It needs root and a network namespace of its own, for a TAP whose host's end drops what it gets. As
in ``dataplane.py`` this is the device's time alone: chains are prepared once, and frames of the
host wait in the TAP before a turn begins.
"""

from __future__ import annotations

import os
import socket
import sys
import time
from typing import TYPE_CHECKING

from devices.virtio.net.device import Net
from devices.virtio.net.state import NetSpec
from devices.virtio.queue import native
from sys_util import tap
from sys_util.event_loop import EPOLLIN
from sys_util.guest_memory import GuestMemory
from tests.support.device_context import DriverSide

if TYPE_CHECKING:
    from collections.abc import Callable

MAC = bytes.fromhex("525400123456")
HEADER_BYTES = 12
BUFFER_BYTES = 1536  # as Linux offers them
QUEUE_SIZE = 256
MAX_MTU = 65521
SHORT_BYTES, LONG_BYTES = 64, 14 + MAX_MTU
RECEIVE, TRANSMIT = 0, 1


class Bench:
    """A card on a TAP, with its driver and a socket that sends frames into the TAP."""

    def __init__(self, *, engine: bool) -> None:
        fd, name = tap.open_queue("bench%d", multi_queue=False)
        tap.set_header_size(fd, HEADER_BYTES)
        with tap.Interfaces() as interfaces:
            interfaces.set_mtu(name, MAX_MTU)
            interfaces.bring_up(name)
        self.host = socket.socket(socket.AF_PACKET, socket.SOCK_RAW)
        self.host.bind((name, 0))
        self.host.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 32 << 20)
        self.device = Net(NetSpec(MAC, MAX_MTU), [fd], engine=engine)
        self.memory = GuestMemory.create([(0, 64 << 20)])
        self.driver = DriverSide(self.device, self.memory, without=0)
        self.driver.start(RECEIVE, TRANSMIT, size=QUEUE_SIZE)
        self.frames = 0

    def send(self, frames: int, length: int) -> float:
        """Return seconds for ``frames`` of the driver to the host, as many at a kick as fit."""
        queue = self.driver.queues[TRANSMIT]
        frame = bytes(HEADER_BYTES) + MAC + MAC + b"\x88\xb5" + bytes(length - 14)
        # All chains share one buffer: the device only reads it.
        where = queue.submit([frame])
        heads = [where.head]
        table = self.memory.view(queue.desc_table, 16 * QUEUE_SIZE)
        for head in range(1, 64):
            table[16 * head : 16 * head + 16] = table[:16]
            heads.append(head)
        self.driver.kick(TRANSMIT)
        seconds = 0.0
        for _ in range(frames // len(heads)):
            for head in heads:
                queue.stage(head)
            queue.set_used_event(queue.avail_idx - 1)
            queue.publish()
            seconds += timed(lambda: self.driver.kick(TRANSMIT))
        if queue.used_idx != queue.avail_idx:
            raise RuntimeError("the device lost frames")
        return seconds / (frames // len(heads) * len(heads))

    def receive(self, frames: int, length: int) -> float:
        """Return seconds for ``frames`` of the host to the driver, a batch in the TAP each time."""
        queue = self.driver.queues[RECEIVE]
        heads = [queue.submit([], [BUFFER_BYTES]).head for _ in range(QUEUE_SIZE)]
        self.driver.kick(RECEIVE)
        chains = -(-(HEADER_BYTES + length) // BUFFER_BYTES)
        batch = QUEUE_SIZE // chains // 2 or 1
        batch = min(batch, 60)
        frame = MAC + MAC + b"\x88\xb5" + bytes(length - 14)
        seconds = 0.0
        done = 0
        for _ in range(frames // batch):
            for _ in range(batch):
                self.host.send(frame)
            seconds += timed(lambda: self.driver.context.fire(self.device.ends[0].fd, EPOLLIN))
            for _ in range(batch * chains):
                queue.stage(heads[done % QUEUE_SIZE])
                done += 1
            if queue.used_idx != done & 0xFFFF:
                raise RuntimeError("the device lost frames")
            queue.set_used_event(queue.used_idx)
            queue.publish()
        return seconds / (frames // batch * batch)

    def close(self) -> None:
        self.driver.close()
        self.host.close()
        os.close(self.device.ends[0].fd)


def timed(act: Callable[[], object]) -> float:
    """Return how many seconds ``act`` takes."""
    start = time.perf_counter()
    act()
    return time.perf_counter() - start


def measure(way: str, length: int, frames: int, *, engine: bool) -> float:
    """Return seconds for a frame, ``out`` of the guest or ``in``to it."""
    bench = Bench(engine=engine)
    try:
        return (bench.send if way == "out" else bench.receive)(frames, length)
    finally:
        bench.close()


def main() -> None:
    frames = int(sys.argv[1]) if len(sys.argv) > 1 else 20_000
    servers = {"engine": True, "python": False} if native.IS_BUILT else {"python": False}
    head = "".join(f" {name + ' µs':>10}" for name in servers)
    sys.stdout.write(f"{'bytes':>8} {'way':>4}{head}\n")
    for length in (SHORT_BYTES, LONG_BYTES):
        for way in ("out", "in"):
            best = dict.fromkeys(servers, float("inf"))
            for _ in range(3):
                for name, engine in servers.items():
                    count = frames if length == SHORT_BYTES else frames // 10
                    seconds = measure(way, length, count, engine=engine)
                    best[name] = min(best[name], seconds)
            told = "".join(f" {1e6 * best[name]:10.2f}" for name in servers)
            sys.stdout.write(f"{length:8} {way:>4}{told}\n")


if __name__ == "__main__":
    main()
