# SPDX-License-Identifier: BSD-3-Clause
"""One KVM vCPU: its registers, its run page, and how another thread makes it leave the guest."""

from __future__ import annotations

import errno
import os

from kvm._kvm import ffi, lib
from kvm.ioctl import ioctl, refuse
from sys_util.typing import TYPE_CHECKING

if TYPE_CHECKING:
    pass


def install_kick_handler(signo: int) -> None:
    """Make ``signo`` interrupt KVM_RUN in the thread that gets it, and do nothing else.

    Raises:
        HostError: a program cannot handle this signal.
    """
    result = lib.crosvm_install_kick_handler(signo)
    if result < 0:
        refuse("sigaction", f"signal {signo}", -result)


def kick_thread(tid: int, signo: int) -> None:
    """Send ``signo`` to thread ``tid`` of this process.

    Raises:
        HostError: there is no such thread.
    """
    result = lib.crosvm_kick(tid, signo)
    if result < 0:
        refuse("tgkill", f"thread {tid}", -result)


class Vcpu:
    """What virtual processors of every architecture have. One thread runs it.

    If another thread calls a method that makes an ioctl, KVM makes it wait until the vCPU has left
    the guest.

    ``page`` is the mapping of ``struct kvm_run`` and the data after it, as bytes. It stays mapped
    as long as there is a view of it, even after ``close``.
    """

    def __init__(self, index: int, fd: int, run_bytes: int) -> None:
        self.index = index
        self.fd = fd
        address = lib.crosvm_map_run(fd, run_bytes)
        if address == ffi.NULL:
            os.close(fd)
            refuse("mmap", f"run page of vCPU {index}", errno.ENOMEM)
        owned = ffi.gc(address, lambda page: lib.munmap(page, run_bytes), run_bytes)
        self.page = memoryview(ffi.buffer(owned, run_bytes)).cast("B")

    @property
    def target(self) -> str:
        """What errors of its ioctls call it."""
        return f"on vCPU {self.index}"

    def run(self) -> int:
        """Run the guest; return 0 if it left with an exit reason, else a negative ``errno``."""
        return lib.crosvm_vcpu_run(self.fd)

    def set_immediate_exit(self, *, enabled: bool) -> None:
        """Make the next KVM_RUN complete the last exit and then return at once with EINTR."""
        self.page[lib.RUN_IMMEDIATE_EXIT] = enabled

    def mp_state(self) -> int:
        """Return the ``KVM_MP_STATE_…``."""
        state = ffi.new("struct kvm_mp_state *")
        ioctl(self.fd, lib.KVM_GET_MP_STATE, state, "KVM_GET_MP_STATE", self.target)
        return state.mp_state

    def set_mp_state(self, value: int) -> None:
        """Set the ``KVM_MP_STATE_…``."""
        state = ffi.new("struct kvm_mp_state *", {"mp_state": value})
        ioctl(self.fd, lib.KVM_SET_MP_STATE, state, "KVM_SET_MP_STATE", self.target)

    def notify_paused(self) -> None:
        """Tell the guest's watchdogs that it was paused, if the guest uses kvmclock."""
        result = lib.crosvm_ioctl_int(self.fd, lib.KVM_KVMCLOCK_CTRL, 0)
        if result < 0 and -result != errno.EINVAL:
            refuse("KVM_KVMCLOCK_CTRL", self.target, -result)

    def close(self) -> None:
        """Close the vCPU. The run page stays mapped as long as there is a view of it."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1
            self.page.release()
