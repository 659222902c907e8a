# SPDX-License-Identifier: BSD-3-Clause
"""The cgroup v2 groups of one VM: a group for the VM, and inside it one for each of its devices.

The vmm makes the VM's group before it forks the warden, which owns it from then on: the warden
makes a group for each device, clones the device into it, and removes all groups at the end. If the
warden is killed, the kernel drops its lock on the VM's group, and the next VM to start removes
whatever it left.

A page of guest memory is charged to the process that touches it first. That is the vmm when the
guest itself touches the page, and a device when it fills a page that the guest has never used,
which a disk does all the time. The charge cannot be moved, and it stays when the process dies.
Therefore the limit of a device is all of guest memory plus what the device itself needs, and a
device that is restarted gets its old group.
"""

from __future__ import annotations

import errno
import fcntl
import os

from sys_util.errors import HostError, ProtocolError
from sys_util.log import get_logger
from sys_util.typing import TYPE_CHECKING, Final, NamedTuple, Self

if TYPE_CHECKING:
    from collections.abc import Iterable

    from jail.cgroup_site import CgroupSite

log = get_logger("crosvm.cgroup")

_PREFIX: Final = "crosvm-"
_ASIDE: Final = ".vmm"  # how the name of the group ends to which the vmm moves, if it must
_DIRECTORY: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
_MOST_BYTES: Final = 4096

# The default of cpu.weight, and its maximum (cgroup-v2.rst).
_CPU_WEIGHT: Final = 100
_MAX_CPU_WEIGHT: Final = 10_000

# A new VM removes groups that nobody has locked. It may take ours for such a group between our
# mkdir and our flock, so we try again.
_ATTEMPTS: Final = 3

# A page table takes 8 bytes for each 4096 bytes that it maps.
_MEMORY_PER_TABLE: Final = 512


class Limits(NamedTuple):
    """What a device may use of the host: bytes of memory charged to it, and processes."""

    memory_bytes: int
    processes: int


class OomCount(NamedTuple):
    """How often a group hit its own limit, and how often a process of it was killed for memory."""

    at_limit: int
    kills: int


def memory_limit(guest_bytes: int, own_bytes: int, file_bytes: int) -> int:
    """Return how many bytes of memory may be charged to a device.

    Args:
        guest_bytes: all of guest memory, because the device may be the first to touch any page.
        own_bytes: what the device itself may use, in user space and in the kernel.
        file_bytes: the size of the file that it writes, if that file is in memory (tmpfs(5)).
    """
    return guest_bytes + guest_bytes // _MEMORY_PER_TABLE + own_bytes + file_bytes


class VmCgroup:
    """The group of one VM, and those of its devices."""

    def __init__(self, site: CgroupSite, name: str) -> None:
        """Make nothing yet: call ``create`` instead."""
        self.path = f"{site.path}/{name}"
        self._site = site
        self._aside = self.path + _ASIDE if site.steps_aside else ""
        self._enabled: tuple[str, ...] = ()  # the controllers of the site that were off before
        self._devices: set[str] = set()
        self._ours = True
        self.lock_fd = -1

    @classmethod
    def create(cls, site: CgroupSite, cpus: int) -> Self:
        """Make the VM's group. The last process that uses it calls ``remove``.

        When processors are busy, all devices together get as much time as one vCPU: their group
        keeps the default weight. If the vmm has to move to a group beside theirs, the vmm's group
        gets ``cpus`` times that weight.

        Raises:
            HostError: the kernel refuses it. What was made until then is removed.
        """
        remove_stale(site.path)
        group = cls(site, f"{_PREFIX}{os.getpid()}")
        try:
            if site.steps_aside:
                group._step_aside()
            group._enabled = _enable(site.path, site.controllers)
            if site.steps_aside and "cpu" in site.controllers:
                group._weigh(cpus)
            group._make()
            _enable(group.path, site.controllers)
        except OSError as error:
            group.remove()
            raise HostError("make", f"the cgroup {group.path}") from error
        return group

    def device(self, name: str, limits: Limits) -> int:
        """Make the group of a device unless it exists, and set its limits.

        Return a descriptor of its directory, which the caller closes.

        Raises:
            ProtocolError: the name would lead to another directory.
            HostError: the kernel refuses it.
        """
        if "/" in name or name.startswith("."):
            raise ProtocolError(f"{name} is no name of a device")
        path = f"{self.path}/{name}"
        try:
            if name not in self._devices:
                os.mkdir(path, 0o755)
                self._devices.add(name)
            self.limit(name, limits)
            return os.open(path, _DIRECTORY)
        except OSError as error:
            raise HostError("make", f"the cgroup {path}") from error

    def limit(self, name: str, limits: Limits) -> None:
        """Set the limits of a device.

        Raises:
            OSError: the kernel refuses them.
        """
        if "memory" in self._site.controllers:
            _write(f"{self.path}/{name}/memory.max", str(limits.memory_bytes))
        if "pids" in self._site.controllers:
            _write(f"{self.path}/{name}/pids.max", str(limits.processes))

    def remove_device(self, name: str) -> None:
        """Remove the group of a device, if there is one. It is left if a process is still in it."""
        if name in self._devices:
            self._devices.remove(name)
            _remove(f"{self.path}/{name}")

    def oom_count(self, name: str) -> OomCount:
        """Return what has happened in a device's group so far; zeros if the kernel does not say."""
        try:
            words = _read(f"{self.path}/{name}/memory.events").split()
        except OSError:
            return OomCount(0, 0)
        events = dict(zip(words[::2], words[1::2], strict=False))
        return OomCount(int(events.get("oom", "0")), int(events.get("oom_kill", "0")))

    def remove(self) -> None:
        """Remove every group, and move back to the group that we came from.

        Groups that no longer exist are no error. Do nothing after ``let_go``.
        """
        if not self._ours:
            return
        self._ours = False
        _remove_tree(self.path)
        if self.lock_fd >= 0:
            os.close(self.lock_fd)
            self.lock_fd = -1
        if self._aside:
            self._step_back()

    def let_go(self) -> None:
        """Leave the groups to another process, which inherited the lock."""
        self._ours = False
        os.close(self.lock_fd)
        self.lock_fd = -1

    def _make(self) -> None:
        """Make the group and lock it, so that other VMs see that it is in use."""
        for _ in range(_ATTEMPTS):
            os.mkdir(self.path, 0o755)
            try:
                self.lock_fd = os.open(self.path, _DIRECTORY)
                fcntl.flock(self.lock_fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
                if os.path.samestat(os.fstat(self.lock_fd), os.stat(self.path)):
                    return
            except (BlockingIOError, FileNotFoundError):
                log.debug("%s: another VM took it for dead", self.path)
            if self.lock_fd >= 0:
                os.close(self.lock_fd)
                self.lock_fd = -1
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), self.path)

    def _step_aside(self) -> None:
        os.mkdir(self._aside, 0o755)
        _write(f"{self._aside}/cgroup.procs", "0")  # the writer itself

    def _weigh(self, cpus: int) -> None:
        _write(f"{self._aside}/cpu.weight", str(min(_CPU_WEIGHT * cpus, _MAX_CPU_WEIGHT)))

    def _step_back(self) -> None:
        """Switch the controllers off again, and move back every process that we moved aside."""
        try:
            if self._enabled:
                _write(f"{self._site.path}/cgroup.subtree_control", _signed("-", self._enabled))
            for pid in _read(f"{self._aside}/cgroup.procs").split():
                _move(pid, self._site.path)
        except OSError as error:
            log.debug("%s: %s", self._aside, error.strerror)
        _remove(self._aside)


def remove_stale(path: str) -> None:
    """Remove the groups below ``path`` that VMs left because their warden was killed."""
    names = [name for name in os.listdir(path) if _is_ours(name)]
    for name in sorted(names):
        group = f"{path}/{name}"
        if name.endswith(_ASIDE):
            if name.removesuffix(_ASIDE) not in names and _remove(group):
                log.info("removed %s, which a killed VM had left", group)
        elif _is_abandoned(group) and _remove_tree(group):
            log.info("removed %s, which a killed VM had left", group)


def _is_ours(name: str) -> bool:
    """Return whether a VM made the group, whose name is crosvm-PID then, not crosvm-web.service."""
    pid = name.removesuffix(_ASIDE).removeprefix(_PREFIX)
    return name.startswith(_PREFIX) and pid.isdecimal()


def _is_abandoned(path: str) -> bool:
    """Return whether no process is in the VM's group and none holds its lock."""
    try:
        if "populated 1" in _read(f"{path}/cgroup.events"):
            return False
        fd = os.open(path, _DIRECTORY)
    except OSError:  # removed meanwhile
        return False
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    finally:
        os.close(fd)
    return True


def _remove_tree(path: str) -> bool:
    """Remove a VM's group and the groups inside it; return whether the VM's group was removed."""
    try:
        with os.scandir(path) as entries:
            names = [entry.name for entry in entries if entry.is_dir(follow_symlinks=False)]
    except FileNotFoundError:
        return False
    for name in names:
        _remove(f"{path}/{name}")
    return _remove(path)


def _remove(path: str) -> bool:
    try:
        os.rmdir(path)
    except OSError as error:
        if error.errno != errno.ENOENT:
            log.warning("cannot remove the cgroup %s: %s", path, error.strerror)
        return False
    return True


def _enable(path: str, controllers: Iterable[str]) -> tuple[str, ...]:
    """Enable these controllers for the groups below ``path``; return those that were off."""
    present = _read(f"{path}/cgroup.subtree_control").split()
    missing = tuple(name for name in controllers if name not in present)
    if missing:
        _write(f"{path}/cgroup.subtree_control", _signed("+", missing))
    return missing


def _signed(sign: str, controllers: Iterable[str]) -> str:
    return " ".join(sign + name for name in controllers)


def _move(pid: str, path: str) -> None:
    try:
        _write(f"{path}/cgroup.procs", pid)
    except ProcessLookupError:
        return  # it has ended


def _write(path: str, text: str) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(fd, text.encode())
    finally:
        os.close(fd)


def _read(path: str) -> str:
    """Return the text of a short file of cgroup v2."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return os.read(fd, _MOST_BYTES).decode()
    finally:
        os.close(fd)
