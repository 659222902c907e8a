# SPDX-License-Identifier: BSD-3-Clause
"""Make a process in new namespaces of every kind (namespaces(7)).

The parent calls ``clone_into`` and then ``write_id_maps``; the child waits until the parent has
written the maps. From its first instruction on, the child is process 1 of its own PID namespace.
"""

from __future__ import annotations

import errno
import os

from jail.ids import JAILED_ID, NO_PROC
from sys_util import linux, signal
from sys_util.errors import NO_MORE_PROCESSES, HostError
from sys_util.typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Mapping

    from jail.ids import IdMap

NAMESPACES: Final = {
    "user": linux.CLONE_NEWUSER,
    "pid": linux.CLONE_NEWPID,
    "mnt": linux.CLONE_NEWNS,
    "net": linux.CLONE_NEWNET,
    "ipc": linux.CLONE_NEWIPC,
    "uts": linux.CLONE_NEWUTS,
    "cgroup": linux.CLONE_NEWCGROUP,
}
_ALL: Final = sum(NAMESPACES.values())

# On a hardened host, making a user namespace needs CAP_SYS_ADMIN (Debian's kernels), or a process
# without it gets no capabilities inside (AppArmor on Ubuntu). Other kernels have neither file.
_RESTRICTIONS: Final = (
    ("/proc/sys/kernel/unprivileged_userns_clone", b"0"),
    ("/proc/sys/kernel/apparmor_restrict_unprivileged_userns", b"1"),
)

# The kernel itself lets us take every step of a jail, so what confines us already has refused it.
CONFINED_HINT: Final = "in a container, see its seccomp and AppArmor profiles and the kernel's log"

_DENIED: Final = (
    "user namespaces are off: on Debian set sysctl kernel.unprivileged_userns_clone=1, on Ubuntu "
    "kernel.apparmor_restrict_unprivileged_userns=0; in a container allow clone(2) and unshare(2)"
)
_CLONE_HINTS: Final = {
    errno.EPERM: _DENIED,
    errno.EACCES: _DENIED,
    errno.ENOSPC: "no more namespaces: set sysctl user.max_user_namespaces, and see the other "
    "user.max_*_namespaces; 33 can be inside each other",
    errno.EUSERS: "user namespaces are too deep inside each other",
    errno.EINVAL: "the kernel needs CONFIG_USER_NS, CONFIG_PID_NS, CONFIG_NET_NS, CONFIG_IPC_NS, "
    "CONFIG_UTS_NS and CONFIG_CGROUPS",
    errno.EAGAIN: NO_MORE_PROCESSES,
}
_MAP_HINTS: Final = {
    errno.EPERM: _DENIED,
    errno.EACCES: "/proc must be writable here",
    errno.EROFS: "/proc must be writable here",
    errno.ENOENT: NO_PROC,
}


def _hint(error: OSError, hints: Mapping[int, str]) -> str:
    return hints.get(error.errno or 0, "")


def restricts_user_namespaces() -> bool:
    """Return whether this host refuses jails to processes without CAP_SYS_ADMIN."""
    return any(_starts_with(path, value) for path, value in _RESTRICTIONS)


def _starts_with(path: str, value: bytes) -> bool:
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        return os.read(fd, len(value)) == value
    finally:
        os.close(fd)


def clone_into(cgroup_fd: int = -1, *, sibling: bool = False) -> int:
    """Fork into new namespaces of every kind; return 0 in the child, else its pid.

    ``cgroup_fd`` is the directory of a cgroup v2 group: the child is in it when this returns, so
    before ``write_id_maps`` lets the child continue. ``sibling``: the parent of the new process is
    the caller's own parent, which writes its id maps and reaps it.

    Raises:
        HostError: the host refuses the namespaces or the group.
    """
    try:
        flags = _ALL | linux.CLONE_PARENT if sibling else _ALL
        return linux.clone(flags) if cgroup_fd < 0 else _clone_into_cgroup(flags, cgroup_fd)
    except OSError as error:
        raise HostError("clone", "namespaces for a device", _hint(error, _CLONE_HINTS)) from error


def _clone_into_cgroup(flags: int, cgroup_fd: int) -> int:
    try:
        return linux.clone_into_cgroup(flags, cgroup_fd)
    except OSError as error:
        if error.errno != errno.ENOSYS:  # with which containers' seccomp filters deny clone3
            raise
    pid = linux.clone(flags)
    if pid:
        try:
            _move(pid, cgroup_fd)
        except OSError:
            os.kill(pid, signal.SIGKILL)
            if not flags & linux.CLONE_PARENT:
                os.waitpid(pid, 0)
            raise
    return pid


def _move(pid: int, cgroup_fd: int) -> None:
    """Move a process into a group: slower than cloning into it, because the kernel has to wait."""
    fd = os.open("cgroup.procs", os.O_WRONLY | os.O_CLOEXEC, dir_fd=cgroup_fd)
    try:
        os.write(fd, str(pid).encode())
    finally:
        os.close(fd)


def write_id_maps(pid: int, ids: IdMap) -> None:
    """Give the new user namespace of ``pid`` its one user and one group (user_namespaces(7)).

    Raises:
        HostError: the kernel refuses the map.
    """
    for name, content in (
        ("setgroups", "deny"),
        ("uid_map", None if ids.uid is None else f"{JAILED_ID} {ids.uid} 1"),
        ("gid_map", None if ids.gid is None else f"{JAILED_ID} {ids.gid} 1"),
    ):
        if content is None:
            continue
        path = f"/proc/{pid}/{name}"
        try:
            fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
            try:
                os.write(fd, content.encode())
            finally:
                os.close(fd)
        except OSError as error:
            raise HostError("write", path, _hint(error, _MAP_HINTS)) from error
