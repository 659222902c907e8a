# SPDX-License-Identifier: BSD-3-Clause
"""Which ids of the host a jailed process has: chosen once, from what this process may give.

Root gives each device a user and a group of its own. That takes two capabilities, and ids that
exist here: root of a container often has 65,536 of them, or one. Where root cannot do it, and for
every other user, a device keeps the ids of whoever started it. No capability is needed for that.
"""

from __future__ import annotations

import os

from sys_util import linux
from sys_util.errors import HostError
from sys_util.typing import Final, NamedTuple

# Root gives every device a host uid that nothing else has: this base, high in the unused range
# below 2^31, plus the device's pid. pid_max is at most 2^22 (proc_sys_kernel(5)).
FIRST_DEVICE_UID: Final = 0x7000_0000
_MAX_PIDS: Final = 1 << 22

# What the process is inside: an ordinary user in a namespace where only this id exists.
JAILED_ID: Final = 1000

NO_PROC: Final = "mount a proc(5) at /proc"

_NEEDED: Final = frozenset({linux.CAP_SETUID, linux.CAP_SETGID})


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


class Ids(NamedTuple):
    """What ``choose`` found: who we are, and which other users and groups we can make others."""

    uid: int
    gid: int
    uids: tuple[range, ...] = ()
    gids: tuple[range, ...] = ()

    @property
    def gives_own(self) -> bool:
        """Whether each device gets a user and a group that nothing else has."""
        return all(
            any(FIRST_DEVICE_UID in ids and FIRST_DEVICE_UID + _MAX_PIDS in ids for ids in there)
            for there in (self.uids, self.gids)
        )

    def of_device(self, pid: int = 0) -> IdMap:
        """Return the ids of a device's process; all maps have the same ``inside()``."""
        if self.gives_own:
            return IdMap(FIRST_DEVICE_UID + pid, FIRST_DEVICE_UID + pid)
        return self._ours()

    def of_user(self, user: IdMap) -> IdMap:
        """Return the ids of a user whose sockets a process has to reach, or ours."""
        if self.uids and self.gids:
            return IdMap(_given(user.uid, self.uids), _given(user.gid, self.gids))
        return self._ours()

    def _ours(self) -> IdMap:
        """Keep our ids; uid 0 without a map, which it could have with CAP_SETFCAP alone."""
        return IdMap(None, None) if self.uid == 0 else IdMap(self.uid, self.gid)


def choose() -> Ids:
    """Look which ids this process can give to its children.

    Raises:
        HostError: /proc is not there.
    """
    uid, gid = os.geteuid(), os.getegid()
    if uid != 0 or not linux.capabilities() >= _NEEDED:
        return Ids(uid, gid)
    return Ids(uid, gid, _existing("/proc/self/uid_map"), _existing("/proc/self/gid_map"))


def _given(host: int | None, existing: tuple[range, ...]) -> int | None:
    """Return an id if it can be given: 0 is ours already, and takes no map."""
    return host if host and any(host in ids for ids in existing) else None


def _existing(path: str) -> tuple[range, ...]:
    """Return the ids that exist in this user namespace (user_namespaces(7))."""
    try:
        with open(path, encoding="ascii") as file:
            lines = [[int(word) for word in line.split()] for line in file]
    except OSError as error:
        raise HostError("read", path, NO_PROC) from error
    return tuple(range(first, first + count) for first, _outside, count in lines)
