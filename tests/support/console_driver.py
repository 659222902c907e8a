# SPDX-License-Identifier: BSD-3-Clause
"""A console whose ports have pipes at their ends, and its driver."""

from __future__ import annotations

import fcntl
import os

from devices.virtio.console.device import Console, ConsoleSpec, PortSpec
from sys_util.event_loop import EPOLLOUT
from sys_util.guest_memory import GuestMemory
from tests.support.device_context import DriverSide

RECEIVE, TRANSMIT = 0, 1
PIPE_BYTES = 4096

LONE = PortSpec("", True, "stream", "stream", 80, 25, True)
DATA_PORT = PortSpec("org.test.0", False, "stream", "stream")


class Pipes:
    """A device whose ports have pipes at their ends."""

    def __init__(self, *specs: PortSpec, pipe_bytes: int = PIPE_BYTES) -> None:
        self.memory = GuestMemory.create([(0, 0x1000000)])
        self.fds: list[int] = []
        self.outputs: list[int] = []  # what the host reads
        self.inputs: list[int] = []  # what the host writes
        device_fds = []
        for spec in specs:
            if spec.output != "none":
                theirs, ours = self._pipe(pipe_bytes)[::-1]
                self.outputs.append(ours)
                self.fds.append(ours)
                device_fds.append(theirs)
            if spec.input != "none":
                theirs, ours = self._pipe(pipe_bytes)
                self.inputs.append(ours)
                self.fds.append(ours)
                device_fds.append(theirs)
        self.device_fds = device_fds
        self.take(Console(ConsoleSpec(specs), device_fds))

    def take(self, console: Console) -> None:
        """Let the driver drive ``console``."""
        self.console = console
        self.driver = DriverSide(console, self.memory)

    def _pipe(self, pipe_bytes: int) -> tuple[int, int]:
        ends = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        fcntl.fcntl(ends[1], fcntl.F_SETPIPE_SZ, pipe_bytes)
        return ends

    def read(self, port: int = 0) -> bytes:
        """Take what the port has written."""
        try:
            return os.read(self.outputs[port], 1 << 20)
        except BlockingIOError:
            return b""

    def transmit(self, *pieces: bytes, queue: int = TRANSMIT) -> list[int]:
        """Send one chain and return the heads that came back."""
        self.driver.queues[queue].submit(list(pieces))
        self.driver.kick(queue)
        return [request.head for request, _, _ in self.driver.queues[queue].collect()]

    def room(self, port: int = 0) -> None:
        """Let the event loop say that there is room."""
        self.driver.context.fire(self.output_fd(port), EPOLLOUT)

    def output_fd(self, port: int = 0) -> int:
        output = self.console._ports[port].output
        assert output is not None
        return int(output.fd)

    def close(self) -> None:
        self.driver.close()
        self.console.close()
        for fd in self.fds:
            os.close(fd)
        self.memory.close()
