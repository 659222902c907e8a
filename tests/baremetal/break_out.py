# SPDX-License-Identifier: BSD-3-Clause
"""``python -m tests.baremetal.break_out PLACE ATTEMPT …``: ``crosvm …`` with an attack in it.

PLACE is ``vcpu``, ``loop``, ``warden`` or ``sealed``, which is the warden once the guest runs. The
attempt runs there once, with all filters loaded.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import mmap
import os
import signal
import socket
import sys
from typing import TYPE_CHECKING, Final

from crosvm_py.__main__ import main
from crosvm_py.machine.vcpu import VcpuSet
from crosvm_py.warden import protocol, warden
from devices.bus import Bus
from jail.namespaces import NAMESPACES
from seccomp import syscall_number
from seccomp.constants_x86_64 import CONSTANTS
from sys_util import linux

if TYPE_CHECKING:
    from collections.abc import Callable


def _open() -> None:
    try:
        os.open("/etc/passwd", os.O_RDONLY)
        os.write(2, b"break-out: opened\n")
    except OSError as error:
        os.write(2, f"break-out: {errno.errorcode[error.errno or 0]}\n".encode())
    os._exit(0)


def _ioctl(name: str) -> Callable[[], object]:
    return lambda: fcntl.ioctl(0, CONSTANTS[name], 0)


def _map_executable() -> None:
    mmap.mmap(-1, 4096, mmap.MAP_PRIVATE, mmap.PROT_EXEC | mmap.PROT_READ)


LIBC: Final = ctypes.CDLL(None)
NOBODY: Final = 0x3FFFFF  # no process has this number: an attempt that succeeds harms nobody


def _abort(pid: int) -> object:
    words = map(ctypes.c_ulong, (syscall_number("tgkill"), pid, pid, signal.SIGABRT))
    return LIBC.syscall(*words)


def _make_victim() -> int:
    """Start a process that is no part of the VM; it ends when the vmm's end of a pipe is closed."""
    read_end, write_end = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(write_end)
        os.read(read_end, 1)
        os._exit(0)
    os.close(read_end)
    return pid


def _kill_victim() -> None:
    try:
        signal.pidfd_send_signal(os.pidfd_open(VICTIM), signal.SIGKILL)
        os.write(2, b"break-out: killed\n")
    except OSError as error:
        os.write(2, f"break-out: {errno.errorcode[error.errno or 0]}\n".encode())
    os._exit(0)


ATTEMPTS: Final[dict[str, Callable[[], object]]] = {
    "open": _open,
    "exec": lambda: os.execv("/bin/true", ["true"]),
    "fork": lambda: linux.clone(0),  # fork(3) of glibc 2.41 blocks the signal that tells of it
    "jail": lambda: linux.clone(sum(NAMESPACES.values())),
    "clone3": lambda: linux.clone_into_cgroup(sum(NAMESPACES.values()), 0),
    "mount": lambda: linux.mount("", "/", "", linux.MS_REC | linux.MS_PRIVATE),
    "filter": lambda: LIBC.syscall(syscall_number("seccomp"), 1, 0, 0),
    "socket": socket.socket,
    "executable": _map_executable,
    "KVM_CREATE_VM": _ioctl("KVM_CREATE_VM"),
    "KVM_RUN": _ioctl("KVM_RUN"),
    "tgkill": lambda: _abort(NOBODY),
    "tgkill-high": lambda: _abort(os.getpid() | 1 << 32),
    "kill": _kill_victim,
}


def _attack_in_vcpu(attempt: Callable[[], object]) -> None:
    read = Bus.read

    def attack(self: Bus, address: int, size: int) -> int:
        attempt()
        return read(self, address, size)

    setattr(Bus, "read", attack)  # noqa: B010 - a method, which a checker guards


def _attack_in_loop(attempt: Callable[[], object]) -> None:
    def attack(_self: VcpuSet) -> None:
        attempt()

    setattr(VcpuSet, "resume", attack)  # noqa: B010 - as above; it follows the doors


def _attack_in_warden(attempt: Callable[[], object]) -> None:
    serve = warden.Warden._on_message

    def attack(self: warden.Warden, events: int) -> None:
        serve(self, events)
        attempt()

    setattr(warden.Warden, "_on_message", attack)  # noqa: B010 - as above


def _attack_in_sealed_warden(attempt: Callable[[], object]) -> None:
    seal = warden.Warden._seal

    def attack(self: warden.Warden, message: protocol.Seal) -> None:
        seal(self, message)
        attempt()

    setattr(warden.Warden, "_seal", attack)  # noqa: B010 - as above


PLACES: Final = {
    "vcpu": _attack_in_vcpu,
    "loop": _attack_in_loop,
    "warden": _attack_in_warden,
    "sealed": _attack_in_sealed_warden,
}


if __name__ == "__main__":
    VICTIM = _make_victim()
    PLACES[sys.argv[1]](ATTEMPTS[sys.argv[2]])
    del sys.argv[1:3]
    sys.exit(main())
