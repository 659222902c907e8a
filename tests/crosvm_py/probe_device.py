# SPDX-License-Identifier: BSD-3-Clause
"""A device that makes forbidden system calls; the driver's write to its config chooses which."""

from __future__ import annotations

import mmap
import os
import signal
import socket
from typing import TYPE_CHECKING, ClassVar, Final

from crosvm_py.kinds.kind import DeviceKind
from crosvm_py.kinds.order import DeviceOrder
from crosvm_py.kinds.table import DEVICE_KINDS
from devices.virtio.device import SimpleDevice
from devices.virtio.queue.servers import ChainServer
from sys_util import linux, log
from sys_util.errors import GuestError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import pytest

    from crosvm_py.vmm.device_proxy import DeviceProcess
    from devices.virtio.queue.chain import DescriptorChain
    from devices.virtio.queue.servers import QueueServer, StartedQueue


def deep() -> None:
    deep()


def raise_bug() -> None:
    raise ZeroDivisionError("a bug in a device")


def raise_guest_error() -> None:
    raise GuestError("the guest is mad")


def take_too_much_memory() -> None:
    # Not by malloc, which asks in another way, a denied one, once a process has had threads.
    mmap.mmap(-1, 1 << 30, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)


def close_everything_and_stay() -> None:
    linux.close_all_fds_except(set())
    while True:
        pass


def close_each_and_stay() -> None:
    for fd in range(64):
        try:
            os.close(fd)
        except OSError:
            continue
    while True:
        pass


def spin() -> None:
    while True:
        pass


def say_too_much() -> None:
    for number in range(100_000):
        log.get_logger("probe").info("line %d", number)


def open_a_file() -> None:
    log.get_logger("probe").info("%s", _error_of(lambda: os.open("/etc/passwd", os.O_RDONLY)))


def import_something() -> None:
    try:
        import antigravity  # noqa: F401
    except ImportError as error:
        log.get_logger("probe").info("%s", error)


def _error_of(call: Callable[[], object]) -> str:
    try:
        call()
    except OSError as error:
        return os.strerror(error.errno or 0)
    return "it worked"


def make_socket() -> None:
    socket.socket()


ACTS: Final[dict[str, Callable[[], object]]] = {
    "getppid": os.getppid,
    "clone": lambda: linux.clone(0),  # newer C libraries begin fork(3) with another call
    "socket": make_socket,
    "kill": lambda: os.kill(1, signal.SIGKILL),
    "execve": lambda: os.execv("/bin/true", ["true"]),
    "memfd": lambda: os.memfd_create("x"),
    "setuid": lambda: os.setuid(0),
    "prctl": lambda: linux.prctl(linux.PR_SET_DUMPABLE, 1),
    "mount": lambda: linux.mount("proc", "/", "proc", 0),
    "ioctl": lambda: os.isatty(0),
    "dup": lambda: os.dup2(0, 50),
    "bug": raise_bug,
    "guest-error": raise_guest_error,
    "recursion": deep,
    "memory": take_too_much_memory,
    "exit": lambda: os._exit(3),
    "close-each": close_each_and_stay,
    "close-range": close_everything_and_stay,
    "spin": spin,
    "say": say_too_much,
    "open": open_a_file,
    "import": import_something,
}
NAMES: Final = tuple(ACTS)


class Probe(SimpleDevice):
    """Do the act whose number is written to the configuration."""

    name: ClassVar[str] = "probe"
    device_type: ClassVar[int] = 4
    queue_sizes: ClassVar[tuple[int, ...]] = (16,)
    seccomp_policy: ClassVar[str] = "rng_device"
    in_order: ClassVar[bool] = True
    gate: ClassVar[None] = None

    def features(self) -> int:
        return 0

    def config(self) -> bytes:
        return bytes(8)

    def write_config(self, offset: int, data: bytes) -> None:
        ACTS[NAMES[data[0]]]()

    def activate(self, features: int) -> None:
        """Nothing changes."""

    def make_server(self, queue: StartedQueue) -> QueueServer:
        return ChainServer(queue, self)

    def handle_chain(self, queue_index: int, chain: DescriptorChain) -> None:
        raise_bug()

    def reset(self) -> None:
        """There is nothing to forget."""


def _build(_spec: bytes, _fds: Sequence[int]) -> Probe:
    return Probe()


ORDER: Final = DeviceOrder("probe", "probe", b"\x80", (), 0)


def add_probe_kind(monkeypatch: pytest.MonkeyPatch) -> None:
    """Add the kind to the table for wardens that are started later."""
    monkeypatch.setitem(DEVICE_KINDS, "probe", DeviceKind("probe", "rng_device", __name__, _build))


def tell(device: DeviceProcess, act: str) -> None:
    """Have the probe make one of its calls."""
    device.write_config(0, bytes([NAMES.index(act)]))
