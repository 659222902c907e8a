# SPDX-License-Identifier: BSD-3-Clause
"""The vmm's side of one device process; a socket takes the place of the process."""

from __future__ import annotations

import array
import os
import socket
from contextlib import contextmanager
from typing import TYPE_CHECKING

from crosvm_py.device_process import protocol
from crosvm_py.kinds.block import BLOCK
from crosvm_py.vmm.device_proxy import DeviceProcess
from devices.virtio.backend import QueueActivation, TransportState
from sys_util import wire
from sys_util.channel import MAX_MESSAGE_FDS, socket_pair
from sys_util.event_loop import EventLoop

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from devices.virtio.backend import VirtioBackend
    from sys_util.wire import Message

CONFIG = bytes(range(16))
READY = protocol.Ready(2, 0x1_3000_0000, (256, 256), CONFIG)


class WatchedLock:
    """A recursive device-model lock that knows whether it is held."""

    def __init__(self) -> None:
        self._depth = 0

    @property
    def held(self) -> bool:
        return self._depth > 0

    def __enter__(self) -> bool:
        self._depth += 1
        return True

    def __exit__(self, *_: object) -> None:
        self._depth -= 1


class RecordedEvents:
    """Records the calls of the transport, with ``!`` if the lock was not held."""

    def __init__(self, lock: WatchedLock) -> None:
        self._lock = lock
        self.calls: list[str] = []

    def _note(self, call: str) -> None:
        self.calls.append(call if self._lock.held else f"!{call}")

    def reset_done(self) -> None:
        self._note("reset_done")

    def queue_reset_done(self, index: int) -> None:
        self._note(f"queue_reset_done {index}")

    def set_needs_reset(self) -> None:
        self._note("set_needs_reset")

    def config_changed(self, config: bytes) -> None:
        self._note(f"config_changed {config.hex()}")

    def config_written(self, config: bytes) -> None:
        self._note(f"config_written {config.hex()}")

    def reactivate(self, backend: VirtioBackend) -> None:
        self._note(f"reactivate {backend.name}")

    def describe(self) -> TransportState:
        self._note("describe")
        return TransportState(0, 0, False, False, False, 0xFFFF, 0, False, False, (), ())

    def backend_lost(self) -> None:
        self._note("backend_lost")


class HostileDevice:
    """A device process taken over by an attacker: it holds the device's end of the channel."""

    def __init__(self, timeout_seconds: float = 30.0) -> None:
        self.loop = EventLoop()
        self.lock = WatchedLock()
        self.host = DeviceProcess(0, "block:0", BLOCK, self.loop, self.lock, timeout_seconds)
        self.events = RecordedEvents(self.lock)
        self.host.events = self.events
        self.ready = 0
        self.failures = 0
        self.host.expect(self._on_ready, self._on_failure)
        self.attach()

    def attach(self) -> None:
        """Act as the next process of the device."""
        ours, self.sock = socket_pair()
        self.sock.setblocking(False)
        self.host.attach(ours)

    def _on_ready(self) -> None:
        self.ready += 1

    def _on_failure(self) -> None:
        self.failures += 1

    @property
    def verdict(self) -> str:
        return self.host.death.verdict

    def send(self, *messages: Message) -> None:
        for message in messages:
            self.send_raw(wire.encode(message))

    def send_raw(self, payload: bytes, fds: Sequence[int] = ()) -> None:
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
        self.sock.sendmsg([payload], rights)

    def flood(self, message: Message) -> int:
        """Send until the socket is full; return how many fitted."""
        payload, sent = wire.encode(message), 0
        try:
            while True:
                self.send_raw(payload)
                sent += 1
        except BlockingIOError:
            return sent

    def take(self) -> tuple[Message, list[int]]:
        """Return what the vmm sent, which must be there."""
        space = socket.CMSG_SPACE(4 * MAX_MESSAGE_FDS)
        payload, ancillary, _, _ = self.sock.recvmsg(wire.MAX_MESSAGE_BYTES, space)
        fds = array.array("i")
        for _, _, data in ancillary:
            fds.frombytes(data)
        return protocol.DEVICE_CODEC.decode(payload), fds.tolist()

    def turn(self) -> None:
        """Run the vmm's loop once."""
        self.loop.run_once(0)

    def close(self) -> None:
        self.host.close()
        self.sock.close()
        self.loop.close()


@contextmanager
def queue(index: int) -> Iterator[QueueActivation]:
    """Make a queue with eventfds of its own."""
    kick, call = os.eventfd(0), os.eventfd(0)
    yield QueueActivation(index, 128, 0x1000, 0x2000, 0x3000, kick, call, resume=False)
    os.close(kick)
    os.close(call)
