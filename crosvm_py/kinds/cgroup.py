# SPDX-License-Identifier: BSD-3-Clause
"""The cgroups of a run: the vmm makes one for the VM if it can, the warden one for each device."""

from __future__ import annotations

import os
import stat

from jail.cgroup import Limits, OomCount, VmCgroup, memory_limit
from jail.cgroup_site import NoCgroupError, find_site
from sys_util.errors import ConfigError, HostError, describe
from sys_util.log import get_logger
from sys_util.typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Sequence

    from crosvm_py.kinds.kind import DeviceKind
    from jail.cgroup_site import CgroupSite

log = get_logger("crosvm.cgroup")

NO_CGROUP: Final = "none"

_LOOP_MAJOR: Final = 7  # Documentation/admin-guide/devices.txt


def make_vm_cgroup(choice: str | None, cpus: int, *, sandbox: bool) -> VmCgroup | None:
    """Make the group of this VM; return ``None`` if devices have to do with resource limits.

    Args:
        choice: the group to make it in, ``NO_CGROUP``, or ``None`` to choose one if possible.
        cpus: the number of vCPUs.
        sandbox: whether there is a sandbox; without it devices have no limits.

    Raises:
        ConfigError: it cannot be made in the group that the user chose.
    """
    site = find_vm_site(choice, sandbox=sandbox)
    if site is None:
        return None
    try:
        return VmCgroup.create(site, cpus)
    except HostError as error:
        _do_without(choice, describe(error))
        return None


def find_vm_site(choice: str | None, *, sandbox: bool) -> CgroupSite | None:
    """Return where the group of a VM would be made, or ``None``; the arguments are as above.

    Raises:
        ConfigError: it cannot be made in the group that the user chose.
    """
    if choice == NO_CGROUP or not (sandbox or choice):
        return None
    if not sandbox:
        raise ConfigError(f"--cgroup {choice}: without a sandbox devices have no limits")
    try:
        return find_site(choice)
    except NoCgroupError as error:
        _do_without(choice, f"{error} ({error.hint})")
        return None


def _do_without(choice: str | None, reason: str) -> None:
    if choice:
        raise ConfigError(f"--cgroup {choice}: {reason}")
    log.debug("devices have resource limits alone: %s", reason)


class DeviceLimits:
    """The cgroup limits of one device and its broker, through all restarts."""

    def __init__(
        self, group: VmCgroup | None, name: str, kind: DeviceKind, guest_bytes: int
    ) -> None:
        self._group = group
        self._name = name
        self._guest_bytes = guest_bytes
        self._own_bytes = kind.max_memory_bytes
        self._processes = max(kind.max_processes, 1) + kind.threads
        if kind.broker is not None:
            # The broker counts too, and a restarted device may have two old ones not yet reaped.
            self._processes = 2 * (self._processes + 1)
        self._memory_bytes = 0
        self._count = OomCount(0, 0)

    def enter(self, file_bytes: int) -> int:
        """Set the limits for the next process; return its group's directory, -1 without a group.

        The caller owns the descriptor. ``file_bytes`` is how much memory the file that the device
        writes can take.

        Raises:
            HostError: the kernel refuses it.
        """
        if self._group is None:
            return -1
        limits = self.limits(file_bytes)
        fd = self._group.device(self._name, limits)
        self._memory_bytes = limits.memory_bytes
        self._count = self._group.oom_count(self._name)
        return fd

    def change(self, file_bytes: int) -> None:
        """Change the limit when the file that the device writes has been resized.

        Raises:
            OSError: the kernel refuses it.
        """
        if self._group is None:
            return
        limits = self.limits(file_bytes)
        self._group.limit(self._name, limits)
        self._memory_bytes = limits.memory_bytes

    def remove(self) -> None:
        """Remove the group; no process is in it any more."""
        if self._group is not None:
            self._group.remove_device(self._name)

    def cause_of_death(self) -> str:
        """Say why the kernel killed the last process, if that was for lack of memory."""
        if self._group is None:
            return ""
        count = self._group.oom_count(self._name)
        if count.kills == self._count.kills:
            return ""
        if count.at_limit == self._count.at_limit:
            return "the host ran out of memory"
        return f"over its memory limit of {self._memory_bytes >> 20} MiB"

    def limits(self, file_bytes: int) -> Limits:
        """Return the limits that the device's group has, or would have."""
        limit = memory_limit(self._guest_bytes, self._own_bytes, file_bytes)
        return Limits(limit, self._processes)


def file_memory(kind: DeviceKind, fds: Sequence[int], max_file_bytes: int) -> int:
    """Return how much memory the file that the device writes can take; 0 if it writes none."""
    return memory_of_file(fds[0], max_file_bytes) if kind.resizable and max_file_bytes else 0


def memory_of_file(fd: int, size_bytes: int) -> int:
    """Return how much memory, which the kernel cannot reclaim, a file of this size takes.

    Pages of a file on a disk are only a cache. Pages of a file in memory (on tmpfs, directly or
    through an overlay or a loop device) are charged to the process that writes them.
    """
    status = os.fstat(fd)
    if stat.S_ISBLK(status.st_mode):
        return size_bytes if os.major(status.st_rdev) == _LOOP_MAJOR else 0
    return 0 if os.major(status.st_dev) else size_bytes
