# SPDX-License-Identifier: BSD-3-Clause
"""What a monitor does before it knows its run: all that is the same in every run.

It imports every module, loads every policy, and has KVM make a VM without memory or vCPUs.
"""

from __future__ import annotations

import gc
from contextlib import suppress

from crosvm_py.vmm.prepared_kernel import move_prepared, prepared_fds
from sys_util.errors import HostError
from sys_util.typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
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

    def fds(self) -> list[int]:
        """Return the descriptors; this object keeps owning them."""
        if self._kvm is None or self._kvm.ready_vm is None:
            return prepared_fds()
        return [*prepared_fds(), self._kvm.fd, self._kvm.ready_vm.fd]

    def move(self, moved: dict[int, int]) -> None:
        """Note that the descriptors have other numbers now."""
        move_prepared(moved)
        if self._kvm is not None and self._kvm.ready_vm is not None:
            self._kvm.fd = moved[self._kvm.fd]
            self._kvm.ready_vm.fd = moved[self._kvm.ready_vm.fd]
