# SPDX-License-Identifier: BSD-3-Clause
"""Attempts on the walls themselves: mounts, roots, namespaces, ids and capabilities."""

from __future__ import annotations

import errno
import struct
from typing import TYPE_CHECKING, Final

from tests.breakout.attempt import Attempt, Cell, every, just, on_each, opens, refuse
from tests.breakout.hands import call

if TYPE_CHECKING:
    from collections.abc import Callable

GROUP: Final = "namespaces"
PRIVILEGES: Final = "privileges"

MS_REMOUNT: Final = 32
MS_BIND: Final = 4096
MNT_DETACH: Final = 2
OPEN_TREE_CLONE: Final = 1
AT_FDCWD: Final = -100
AT_EMPTY_PATH: Final = 0x1000
ROOT: Final = b"/\0"
TMPFS: Final = b"tmpfs\0"
PROC: Final = b"proc\0"

_NEW: Final = {
    "user": 0x10000000,
    "mount": 0x00020000,
    "PID": 0x20000000,
    "network": 0x40000000,
    "IPC": 0x08000000,
    "UTS": 0x04000000,
    "cgroup": 0x02000000,
    "time": 0x00000080,
}
_NO_NEW_PRIVS: Final = 38


def join(fd: int) -> None:
    call("setns", fd, 0)


def into_root_of(whom: Callable[[Cell], int]) -> Callable[[Cell], object]:
    def act(cell: Cell) -> None:
        pidfd = call("pidfd_open", whom(cell), 0)
        try:
            call("setns", pidfd, _NEW["mount"])
        finally:
            call("close", pidfd)

    return act


def all_capabilities(_cell: Cell) -> None:
    header = struct.pack("Ii", 0x20080522, 0)
    call("capset", header, struct.pack("6I", *[0xFFFF_FFFF] * 6))


def use_root_files(_cell: Cell) -> None:
    """setfsuid(2) tells only by a second call whether the first had an effect."""
    call("setfsuid", 0)
    if call("setfsuid", -1) != 0:
        raise refuse("setfsuid", errno.EPERM)


def _mount(name: str, *words: int | bytes) -> Attempt:
    return Attempt(GROUP, name, just("mount", *words), jail=True)


ATTEMPTS: Final = (
    _mount("mount a tmpfs", TMPFS, ROOT, TMPFS, 0, 0),
    _mount("mount /proc", PROC, ROOT, PROC, 0, 0),
    _mount("mount /sys", b"sysfs\0", ROOT, b"sysfs\0", 0, 0),
    _mount("mount a device's file system", b"/dev/vda\0", ROOT, b"ext4\0", 0, 0),
    _mount("make the root writable", TMPFS, ROOT, TMPFS, MS_REMOUNT, 0),
    _mount("make the root writable by a bind", b"\0", ROOT, b"\0", MS_REMOUNT | MS_BIND, 0),
    _mount("bind the root elsewhere", ROOT, ROOT, b"\0", MS_BIND, 0),
    Attempt(GROUP, "unmount the root", just("umount2", ROOT, MNT_DETACH), jail=True),
    Attempt(GROUP, "change the root", just("chroot", b"..\0"), jail=True),
    Attempt(GROUP, "pivot the root", just("pivot_root", b".\0", b".\0"), jail=True),
    Attempt(GROUP, "leave through the root", just("chdir", b"/proc/1/root\0"), jail=True),
    Attempt(
        GROUP,
        "change into each descriptor",
        on_each(every, lambda fd: call("fchdir", fd)),
        jail=True,
    ),
    Attempt(
        GROUP,
        "take a copy of the mounts",
        opens("open_tree", AT_FDCWD, ROOT, OPEN_TREE_CLONE),
        jail=True,
    ),
    Attempt(
        GROUP,
        "move a mount",
        just("move_mount", AT_FDCWD, ROOT, AT_FDCWD, ROOT, 0),
        jail=True,
    ),
    Attempt(GROUP, "make a file system", opens("fsopen", TMPFS, 0), jail=True),
    Attempt(GROUP, "pick a file system", opens("fspick", AT_FDCWD, ROOT, 0), jail=True),
    Attempt(
        GROUP,
        "change a mount's attributes",
        just("mount_setattr", AT_FDCWD, ROOT, 0, struct.pack("4Q", 0, 1, 0, 0), 32),
        jail=True,
    ),
    *(
        Attempt(GROUP, f"unshare the {name} namespace", just("unshare", flag), jail=True)
        for name, flag in _NEW.items()
    ),
    Attempt(
        GROUP,
        "unshare user and mount namespaces",
        just("unshare", _NEW["user"] | _NEW["mount"]),
        jail=True,
    ),
    Attempt(GROUP, "join the namespace of each descriptor", on_each(every, join), jail=True),
    Attempt(GROUP, "join the vmm's namespaces", into_root_of(lambda cell: cell.vmm), jail=True),
    Attempt(GROUP, "join the warden's", into_root_of(lambda cell: cell.warden), jail=True),
    Attempt(GROUP, "join a sibling's", into_root_of(lambda cell: cell.sibling), jail=True),
    Attempt(GROUP, "name the host", just("sethostname", b"out", 3), jail=True),
    Attempt(GROUP, "name the domain", just("setdomainname", b"out", 3), jail=True),
    Attempt(PRIVILEGES, "become root", just("setuid", 0), jail=True),
    Attempt(PRIVILEGES, "become root by setresuid", just("setresuid", 0, 0, 0), jail=True),
    Attempt(PRIVILEGES, "become root's group", just("setresgid", 0, 0, 0), jail=True),
    Attempt(PRIVILEGES, "join groups", just("setgroups", 1, struct.pack("I", 0)), jail=True),
    Attempt(PRIVILEGES, "use root's files", use_root_files, jail=True),
    Attempt(PRIVILEGES, "take every capability", all_capabilities, jail=True),
    Attempt(PRIVILEGES, "raise an ambient capability", just("prctl", 47, 2, 21, 0, 0), jail=True),
    Attempt(PRIVILEGES, "loosen the securebits", just("prctl", 28, 0, 0, 0, 0), jail=True),
    Attempt(PRIVILEGES, "keep capabilities", just("prctl", 8, 1, 0, 0, 0), jail=True),
    Attempt(
        PRIVILEGES, "allow new privileges", just("prctl", _NO_NEW_PRIVS, 0, 0, 0, 0), jail=True
    ),
    Attempt(PRIVILEGES, "outlive the warden", just("prctl", 1, 0, 0, 0, 0)),
    Attempt(PRIVILEGES, "become the reaper of others", just("prctl", 36, 1, 0, 0, 0)),
    Attempt(PRIVILEGES, "start a session", just("setsid")),
    Attempt(PRIVILEGES, "hang the terminal up", just("vhangup"), jail=True),
)
