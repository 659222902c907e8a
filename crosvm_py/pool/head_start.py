# SPDX-License-Identifier: BSD-3-Clause
"""What a monitor does before it knows its run: all that is the same in every run.

It imports every module, loads every policy, has KVM make a VM without memory or vCPUs, and starts a
warden with spare devices.
"""

from __future__ import annotations

import gc
from contextlib import suppress

from crosvm_py.pool.caller import circumstances
from crosvm_py.vmm.prepared_kernel import move_prepared, prepared_fds
from sys_util.errors import HostError, VmmError
from sys_util.typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from crosvm_py.pool.spare_warden import SpareWarden
    from kvm.vm import Kvm

_MODULES: Final = (
    *("crosvm_py.exit_status", "crosvm_py.log", "crosvm_py.run", "jail.plan"),
    *("crosvm_py.vmm.preparation", "crosvm_py.vmm.vm", "crosvm_py.vmm.warden_proxy"),
    "kernel_loader.parse",
    *("crosvm_py.file_parser.process", "crosvm_py.warden.warden", "crosvm_py.console.terminal"),
    *("crosvm_py.operations.dispatch", "crosvm_py.operations.suspension"),
    *("crosvm_py.control.socket_server", "hashlib", "encodings.ascii"),
)


class HeadStart:
    """A monitor's own descriptors that its run will use."""

    def __init__(self) -> None:
        """Do all of it; what the host refuses now is left to the run, which tells the user."""
        from crosvm_py.cli.dispatch import COMMANDS
        from crosvm_py.cli.grammar.command import load_command

        load_command(COMMANDS["run"])
        for module in _MODULES:
            __import__(module)
        from crosvm_py.kinds.policies import keep_run_policies
        from crosvm_py.kinds.table import DEVICE_KINDS
        from crosvm_py.vmm.preparation import make_kvm_ready
        from seccomp import syscall_name

        syscall_name(0)  # loads the names
        keep_run_policies()
        for kind in DEVICE_KINDS.values():
            kind.preload()
        self._kvm: Kvm | None = None
        with suppress(HostError):
            self._kvm = make_kvm_ready()
        gc.collect()
        gc.freeze()
        self._spare = _start_spare()
        self._circumstances = circumstances()

    def settle(self) -> None:
        """Pass the warden on to the run, unless a child of this process would be another by now."""
        if self._spare is not None:
            from crosvm_py.pool.spare_warden import keep_spare

            if circumstances() == self._circumstances:
                keep_spare(self._spare)
            else:
                self._spare.dismiss()

    def fds(self) -> list[int]:
        """Return the descriptors; this object keeps owning them."""
        kvm = self._kvm
        fds = prepared_fds()
        if kvm is not None and kvm.ready_vm is not None:
            fds += [kvm.fd, kvm.ready_vm.fd]
        return fds if self._spare is None else [*fds, *self._spare.fds()]

    def move(self, moved: dict[int, int]) -> None:
        """Note that the descriptors have other numbers now."""
        move_prepared(moved)
        if self._kvm is not None and self._kvm.ready_vm is not None:
            self._kvm.fd = moved[self._kvm.fd]
            self._kvm.ready_vm.fd = moved[self._kvm.ready_vm.fd]
        if self._spare is not None:
            self._spare.move(moved)


def _start_spare() -> SpareWarden | None:
    """Return a spare warden; ``None`` if the host refuses it, which the run will tell its user."""
    from crosvm_py.pool.spare_warden import start_spare_warden

    try:
        return start_spare_warden()
    except (VmmError, OSError):
        return None
