# SPDX-License-Identifier: BSD-3-Clause
"""Choose which user and group ids of the host a jailed process has.

If root runs the VM, each device gets a user and a group of its own. That needs CAP_SETUID,
CAP_SETGID and a user namespace in which these ids exist: root of a container often has only 65,536
ids, or one. Otherwise, and for every user but root, a device keeps the ids of the user who started
the VM, which needs no capability.
"""

from __future__ import annotations

import os

from sys_util import linux
from sys_util.errors import HostError
from sys_util.typing import Final, NamedTuple

# The host uid of root's devices is this base plus the pid of the device. Nothing else uses these
# ids, near the end of the range below 2^31. pid_max is at most 2^22 (proc_sys_kernel(5)).
FIRST_DEVICE_UID: Final = 0x7000_0000
_MAX_PIDS: Final = 1 << 22

# The id that the process has inside its user namespace, where no other id exists.
JAILED_ID: Final = 1000

NO_PROC: Final = "mount a proc(5) at /proc"

_NEEDED: Final = frozenset({linux.CAP_SETUID, linux.CAP_SETGID})


class IdMap(NamedTuple):
    """The one user and the one group that exist in a jail, as the host knows them.

    ``None``: no id exists in the jail. The host still treats the process as the user or group of
    the process that cloned it, and it cannot change that.
    """

    uid: int | None
    gid: int | None

    def inside(self) -> tuple[int | None, int | None]:
        """Return the ids that the process can assume in its namespace; ``None`` as above."""
        uid, gid = (None if host is None else JAILED_ID for host in self)
        return uid, gid


class Ids(NamedTuple):
    """What ``choose`` found: our own ids, and the ids that we can give to our children."""

    uid: int
    gid: int
    uids: tuple[range, ...] = ()
    gids: tuple[range, ...] = ()

    @property
    def gives_own(self) -> bool:
        """Whether each device gets a user and a group of its own."""
        return all(
            any(FIRST_DEVICE_UID in ids and FIRST_DEVICE_UID + _MAX_PIDS in ids for ids in there)
            for there in (self.uids, self.gids)
        )

    def of_device(self, pid: int = 0) -> IdMap:
        """Return the ids of the device process ``pid``; ``inside()`` is the same for every pid."""
        if self.gives_own:
            return IdMap(FIRST_DEVICE_UID + pid, FIRST_DEVICE_UID + pid)
        return self._own_ids()

    def of_user(self, user: IdMap) -> IdMap:
        """Return the ids for a process that has to reach a user's sockets: that user's, or ours."""
        if self.uids and self.gids:
            return IdMap(_if_possible(user.uid, self.uids), _if_possible(user.gid, self.gids))
        return self._own_ids()

    def _own_ids(self) -> IdMap:
        """Keep our ids. Write no map for uid 0: mapping it would need CAP_SETFCAP."""
        return IdMap(None, None) if self.uid == 0 else IdMap(self.uid, self.gid)


def choose() -> Ids:
    """Find out which ids this process can give to its children.

    Raises:
        HostError: /proc is not mounted.
    """
    uid, gid = os.geteuid(), os.getegid()
    if uid != 0 or not linux.capabilities() >= _NEEDED:
        return Ids(uid, gid)
    return Ids(
        uid, gid, _ids_in_namespace("/proc/self/uid_map"), _ids_in_namespace("/proc/self/gid_map")
    )


def _if_possible(host: int | None, existing: tuple[range, ...]) -> int | None:
    """Return the id if we can give it; ``None`` for 0 too, which is ours and needs no map."""
    return host if host and any(host in ids for ids in existing) else None


def _ids_in_namespace(path: str) -> tuple[range, ...]:
    """Return the ids that exist in this user namespace (user_namespaces(7))."""
    try:
        with open(path, encoding="utf-8") as file:
            lines = [[int(word) for word in line.split()] for line in file]
    except OSError as error:
        raise HostError("read", path, NO_PROC) from error
    return tuple(range(first, first + count) for first, _outside, count in lines)
