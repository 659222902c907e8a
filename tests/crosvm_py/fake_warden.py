# SPDX-License-Identifier: BSD-3-Clause
"""A supervisor with a fake warden: a socket, and a process that ends or hangs."""

from __future__ import annotations

import os
import select
import signal
from typing import TYPE_CHECKING

from crosvm_py.care import NEVER, Care
from crosvm_py.device_process import protocol as device_protocol
from crosvm_py.kinds.order import DeviceOrder
from crosvm_py.vmm.supervisor import Supervisor
from crosvm_py.vmm.warden_proxy import WardenProcess
from crosvm_py.warden import protocol
from sys_util import linux
from sys_util.channel import Channel, socket_pair
from sys_util.event_loop import EventLoop
from sys_util.guest_memory import GuestMemory
from tests.crosvm_py.hostile_device import WatchedLock

if TYPE_CHECKING:
    from crosvm_py.care import RestartLimit
    from crosvm_py.vmm.device_proxy import DeviceProcess
    from sys_util.wire import Message

READY = device_protocol.Ready(4, 0, (256,), b"")


class FakeWarden:
    """Answers in place of the warden, and holds the channels of the devices it should have made."""

    def __init__(self, *, ends: bool = True, restarts: RestartLimit = NEVER) -> None:
        pid = os.fork()
        if pid == 0:  # what the supervisor will wait for, forked before it could hold our sockets
            linux.close_all_fds_except(set())
            if not ends:
                signal.pause()
            os._exit(0)
        self.pid = pid
        self.loop = EventLoop()
        ours, theirs = socket_pair()
        self.channel = Channel(theirs, protocol.WARDEN_CODEC)
        self.sock = theirs
        self.memory = GuestMemory.create([(0, 1 << 20)])
        self.deaths: list[str] = []
        self.supervisor = Supervisor(
            self.loop,
            WatchedLock(),
            WardenProcess(Channel(ours, protocol.VMM_CODEC), pid),
            self.deaths.append,
            Care(restarts),
        )
        self.devices: list[Channel] = []
        self._ended = False

    def spawn(self, name: str, *fds: int, ready: bool = True) -> DeviceProcess:
        """Have the supervisor ask for a device, and make its channel ours."""
        order = DeviceOrder(name, "rng", b"\x80", fds, 0)
        return self.spawn_order(order, READY if ready else None)

    def spawn_order(self, order: DeviceOrder, ready: device_protocol.Ready | None) -> DeviceProcess:
        """Do so with any order, and any first message."""
        device = self.supervisor.spawn(order, self.memory)
        message = self.make(len(self.devices), ready)
        assert isinstance(message, protocol.Spawn)
        return device

    def make(self, device_id: int, ready: device_protocol.Ready | None = READY) -> Message:
        """Take the request for a process, make it (pid 100 and up), and let it say ``ready``."""
        message, received = self.take()
        for fd in received:
            os.close(fd)
        theirs, sock = socket_pair()
        for device in self.devices[device_id : device_id + 1]:
            device.close()
        self.devices[device_id:] = [
            Channel(sock, device_protocol.DEVICE_CODEC),
            *self.devices[device_id + 1 :],
        ]
        self.channel.send(protocol.Spawned(device_id, 100 + device_id), [theirs.fileno()])
        theirs.close()
        self.turn()
        if ready:
            self.devices[device_id].send(ready)
            self.turn()
        return message

    def take(self) -> tuple[Message, list[int]]:
        received = self.channel.receive()
        assert received is not None
        return received

    @property
    def asked(self) -> bool:
        """Whether the supervisor has sent a message."""
        return bool(select.select([self.sock], [], [], 0)[0])

    def send(self, *messages: Message) -> None:
        for message in messages:
            self.channel.send(message)
            self.turn()

    def send_raw(self, payload: bytes) -> None:
        self.sock.send(payload)
        self.turn()

    def turn(self) -> None:
        self.loop.run_once(0)

    def end(self) -> None:
        self._ended = True
        self.supervisor.end()

    def close(self) -> None:
        if not self._ended:
            self.end()
        self.channel.close()
        for device in self.devices:
            device.close()
        self.memory.close()
        self.loop.close()
