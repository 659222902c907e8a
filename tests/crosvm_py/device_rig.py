# SPDX-License-Identifier: BSD-3-Clause
"""The vmm's part around its devices: a real warden and real device processes, but no KVM.

The driver is the one of the queue tests; its memory is the memfd that the devices have mapped.
"""

from __future__ import annotations

import os
import select
import threading
import time
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Final

from crosvm_py.care import NEVER, Care
from crosvm_py.kinds.order import DeviceOrder, pack_spec
from crosvm_py.kinds.policies import load_run_policies
from crosvm_py.kinds.table import DEVICE_KINDS
from crosvm_py.vmm.supervisor import Supervisor
from crosvm_py.vmm.warden_proxy import start_warden
from crosvm_py.warden import protocol
from devices.virtio.block.spec import BlockSpec
from devices.virtio.rng.device import RngSpec
from disk.image import open_image
from jail import plan
from sys_util import log
from sys_util.channel import Channel, socket_pair
from sys_util.event_loop import EventLoop
from sys_util.guest_memory import GuestMemory
from tests.crosvm_py.hostile_device import RecordedEvents, WatchedLock
from tests.support.driver_queue import DriverQueue

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from typing import Self

    from crosvm_py.vmm.device_proxy import DeviceProcess
    from devices.virtio.backend import VirtioBackend
    from tests.support.driver_queue import Request

# Everything here takes milliseconds; the rest is for a machine that is busy with other things.
PATIENCE_SECONDS: Final = 60.0
MEMORY_BYTES: Final = 4 << 20
VERSION_1: Final = 1 << 32
INDIRECT_DESC: Final = 1 << 28
FEATURES: Final = VERSION_1 | INDIRECT_DESC


class RigQueue:
    """One queue of one device, with the driver's side of it."""

    def __init__(self, rig: DeviceRig, index: int, base: int) -> None:
        self._rig = rig
        self.ring = DriverQueue(rig.memory, 16, base=base, heap=base + 0x4000)
        self.kick_fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self.call_fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self.activation = self.ring.activation(index, self.kick_fd, self.call_fd)
        self.calls = 0
        rig.loop.add(self.call_fd, self._on_call)

    def _on_call(self, _events: int) -> None:
        self.calls += os.eventfd_read(self.call_fd)

    def submit(self, out: Sequence[bytes], into: Sequence[int]) -> Request:
        request = self.ring.submit(out, into)
        self.kick()
        return request

    def kick(self) -> None:
        os.eventfd_write(self.kick_fd, 1)

    def answer(self) -> tuple[int, bytes]:
        """Wait for an interrupt; return the used length and the bytes of the one answer."""
        seen = self.calls
        self._rig.until(lambda: self.calls > seen)
        ((_, used_len, data),) = self.ring.collect()
        return used_len, data

    def request(self, out: Sequence[bytes], into: Sequence[int]) -> tuple[int, bytes]:
        self.submit(out, into)
        return self.answer()

    def close(self) -> None:
        self._rig.loop.remove(self.call_fd)
        os.close(self.kick_fd)
        os.close(self.call_fd)


class Transport(RecordedEvents):
    """Activate the queues again, as the transport of a driver that is ready does."""

    def __init__(self, queues: Sequence[RigQueue]) -> None:
        super().__init__(WatchedLock())
        self._queues = queues

    def reactivate(self, backend: VirtioBackend) -> None:
        again = [queue.activation._replace(resume=True) for queue in self._queues]
        backend.activate(FEATURES, again)


@contextmanager
def room_for_what_tests_have() -> Iterator[None]:
    """Allow processes forked meanwhile the memory of this one, beyond what a device may have.

    A warden is small, but a process that has run a thousand tests is not, and its children inherit
    what it has.
    """
    usual = plan.MAX_DATA_BYTES
    status = Path("/proc/self/status").read_text()
    inherited_kib = int(status.partition("VmData:")[2].split()[0])
    plan.MAX_DATA_BYTES = usual + inherited_kib * 1024  # type: ignore[misc]  # a test's change
    try:
        yield
    finally:
        plan.MAX_DATA_BYTES = usual  # type: ignore[misc]


class DeviceRig:
    """A vmm without a machine; use it in a ``with`` statement."""

    def __init__(
        self,
        *,
        sandbox: bool,
        policy_directory: str | None = None,
        tidy: Callable[[], None] = lambda: None,
        keep_fds: Sequence[int] = (),
        care: Care = Care(NEVER),  # noqa: B008 - a fact, which nobody changes
        has_opener: bool = False,
    ) -> None:
        self.loop = EventLoop()
        self.memory = GuestMemory.create(
            [(0, MEMORY_BYTES)], hot_ranges=[(1 << 32, 4 << 20, 2 << 20)]
        )
        self.deaths: list[str] = []
        self.lines: list[str] = []
        self._pid = os.getpid()
        log.set_sink(self._log)
        policies = load_run_policies(DEVICE_KINDS, directory=policy_directory) if sandbox else None
        ours, theirs = socket_pair()
        self.orders = Channel(ours, protocol.OPENER_CODEC)  # the opener's end
        with theirs, room_for_what_tests_have():
            self.warden = start_warden(
                policies,
                sorted(DEVICE_KINDS),
                tidy,
                keep_fds,
                orders=theirs if has_opener else None,
            )
        self.lock = threading.RLock()
        self.supervisor = Supervisor(self.loop, self.lock, self.warden, self.deaths.append, care)
        self._queues: list[RigQueue] = []
        self._pidfds: dict[str, int] = {}
        self._ended = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for queue in self._queues:
            queue.close()
        self._queues.clear()  # and with them their views of the memory
        self.end()
        for fd in self._pidfds.values():
            os.close(fd)
        self.orders.close()
        self.memory.close()
        self.loop.close()
        log.set_sink(log.stderr_sink)

    def _log(self, _level: int, _module: str, text: str) -> None:
        """Keep our lines; those of the warden and the devices, which fork from us, are told."""
        if os.getpid() == self._pid:
            self.lines.append(text)
        else:
            os.write(2, f"{text}\n".encode())

    def end(self) -> None:
        """End the warden and its devices as the vmm does."""
        if not self._ended:
            self._ended = True
            self.supervisor.end()

    def until(self, condition: Callable[[], bool]) -> None:
        """Run the loop until a condition holds."""
        deadline = time.monotonic() + PATIENCE_SECONDS
        while not condition():
            assert time.monotonic() < deadline, (self.deaths, self.lines[-20:])
            self.loop.run_once(0.1)

    def spawn(self, order: DeviceOrder) -> DeviceProcess:
        """Ask for a device process, and wait until its pid is known."""
        device = self.supervisor.spawn(order, self.memory)
        self.until(lambda: bool(device.pid or self.deaths))
        if device.pid:
            with suppress(ProcessLookupError):  # it has ended already
                self._pidfds[device.name] = os.pidfd_open(device.pid)
        return device

    def start(self, order: DeviceOrder) -> DeviceProcess:
        """Make a device process and wait until it is ready."""
        device = self.spawn(order)
        self.supervisor.wait_ready()
        return device

    def block(
        self,
        path: Path,
        *,
        read_only: bool = False,
        name: str = "block:0",
        direct: bool = False,
    ) -> DeviceProcess:
        spec = BlockSpec(str(path), read_only=read_only, direct=direct)
        fd = open_image(spec)
        packed = pack_spec(spec, path="", num_queues=2)
        size_bytes = 0 if read_only else path.stat().st_size
        return self.start(DeviceOrder(name, "block", packed, (fd,), size_bytes))

    def rng(self) -> DeviceProcess:
        return self.start(DeviceOrder("rng", "rng", pack_spec(RngSpec()), (), 0))

    def activate(self, device: DeviceProcess, *, queues: int = 1) -> list[RigQueue]:
        """Set up queues in memory of their own and make the driver ready."""
        made = []
        for index in range(queues):
            made.append(RigQueue(self, index, 0x10000 * (1 + len(self._queues))))
            self._queues.append(made[-1])
        device.activate(FEATURES, [queue.activation for queue in made])
        return made

    def death(self) -> str:
        """Wait for the reason for which the VM would end."""
        self.until(lambda: bool(self.deaths))
        return self.deaths[0]

    def is_gone(self, device: DeviceProcess) -> bool:
        """Wait for the end of a device process, whichever process reaps it."""
        poll = select.poll()
        poll.register(self._pidfds[device.name], select.POLLIN)
        return bool(poll.poll(PATIENCE_SECONDS * 1000))

    def warden_is_gone(self) -> bool:
        poll = select.poll()
        poll.register(self.warden.pidfd, select.POLLIN)
        return bool(poll.poll(PATIENCE_SECONDS * 1000))
