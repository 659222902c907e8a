# SPDX-License-Identifier: BSD-3-Clause
"""The namespaces of a jail, and the two sides of entering them (namespaces(7)).

The parent calls ``clone_into`` and then ``write_id_maps``; the child waits until the maps are
there. The child is process 1 of a PID namespace of its own from its first instruction on.
"""

from __future__ import annotations

import errno
import os
import signal

from sys_util import linux
from sys_util.errors import HostError
from sys_util.typing import Final, NamedTuple

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

# Root gives every device a host uid that nothing else has: this base, high in the unused range
# below 2^31, plus the device's pid. pid_max is at most 2^22 (proc_sys_kernel(5)).
FIRST_DEVICE_UID: Final = 0x7000_0000

# What the process is inside: an ordinary user in a namespace where only this id exists.
JAILED_ID: Final = 1000

_USERNS_HINT: Final = (
    "user namespaces are off: set sysctl user.max_user_namespaces and, on Debian and Ubuntu, "
    "kernel.unprivileged_userns_clone=1 and kernel.apparmor_restrict_unprivileged_userns=0; "
    "in a container allow unshare(2)"
)


class IdMap(NamedTuple):
    """The one user and the one group that exist in a jail, as the host knows them.

    ``None``: none exists there. The process keeps the id of the one that cloned it, by which the
    host judges it, and can take no other.
    """

    uid: int | None
    gid: int | None

    def inside(self) -> tuple[int | None, int | None]:
        """Return the ids that the process can assume."""
        uid, gid = (None if host is None else JAILED_ID for host in self)
        return uid, gid


def id_map_for(pid: int, owner: IdMap | None = None) -> IdMap:
    """Choose the host's ids for a jailed process: unprivileged, and its own where we are root.

    ``owner``: instead the ids of a user whose sockets the process has to reach; only root can give
    them. It gives its own without a map, for which it would need a capability (CAP_SETFCAP).
    """
    uid, gid = os.geteuid(), os.getegid()
    if uid != 0:
        return IdMap(uid, gid)
    if owner is not None:
        return IdMap(owner.uid or None, owner.gid or None)
    return IdMap(FIRST_DEVICE_UID + pid, FIRST_DEVICE_UID + pid)


def clone_into(cgroup_fd: int = -1) -> int:
    """Fork into new namespaces of every kind; return 0 in the child, else its pid.

    With ``cgroup_fd``, the directory of a group of cgroup v2, the child is in that, too, before
    ``write_id_maps`` can let it go.

    Raises:
        HostError: the host does not let us.
    """
    try:
        return linux.clone(_ALL) if cgroup_fd < 0 else _clone_into_cgroup(cgroup_fd)
    except OSError as error:
        raise HostError("clone", "namespaces for a device", _USERNS_HINT) from error


def _clone_into_cgroup(cgroup_fd: int) -> int:
    try:
        return linux.clone_into_cgroup(_ALL, cgroup_fd)
    except OSError as error:
        if error.errno != errno.ENOSYS:  # what a container that does not let us says
            raise
    pid = linux.clone(_ALL)
    if pid:
        try:
            _move(pid, cgroup_fd)
        except OSError:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            raise
    return pid


def _move(pid: int, cgroup_fd: int) -> None:
    """Put a process into a group: slower than starting it there, since the kernel has to wait."""
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
            raise HostError("write", path, _USERNS_HINT) from error
