# SPDX-License-Identifier: BSD-3-Clause
"""Find where in cgroup v2 a VM can make groups for its devices (cgroups(7)). Change nothing.

Except for the root group, a group that enables controllers for the groups below it must not
contain processes. So the VM's groups can be made in one of three places: in the root group, by
root; in a group that we may write and that has no processes; in the group that we are in, if we are
its only process and move to another group first.
"""

from __future__ import annotations

import os

from sys_util.errors import VmmError
from sys_util.typing import Final, NamedTuple

# They limit a device's share of the processors, its memory and its number of processes.
CONTROLLERS: Final = ("cpu", "memory", "pids")

_V2_LINE: Final = "0::"
_V2_TYPE: Final = "cgroup2"


_BOOT_HINT: Final = "boot with systemd.unified_cgroup_hierarchy=1"


class NoCgroupError(VmmError):
    """We can make no groups. ``hint`` says what the user can do about it."""

    def __init__(self, reason: str, hint: str = "") -> None:
        super().__init__(reason)
        self.hint = hint or _delegation_hint()


class CgroupSite(NamedTuple):
    """A group below which we can make others.

    ``controllers`` are those that can be enabled for the groups below it. ``steps_aside``: our own
    process is the only one in the group, and has to move to another one first.
    """

    path: str
    controllers: tuple[str, ...]
    steps_aside: bool = False


def find_site(path: str | None = None, *, proc: str = "/proc") -> CgroupSite:
    """Return the group at ``path``, if groups for devices can be made below it.

    Without ``path``, try the group that this process is in. If that does not work, try the one
    above it, provided that systemd has delegated it to us.

    Raises:
        NoCgroupError: no groups for devices can be made there.
    """
    own = own_group(proc)
    if path is not None:
        return _examine(_absolute(path), own)
    try:
        return _examine(own, own)
    except NoCgroupError:
        above = os.path.dirname(own)
        if not _is_delegated(above):
            raise
        return _examine(above, own)


def _absolute(path: str) -> str:
    try:
        return os.path.realpath(path)
    except OSError as error:
        raise NoCgroupError(f"{path}: {error.strerror}", "give an absolute path") from error


def _delegation_hint() -> str:
    user = "" if os.geteuid() == 0 else "--user "
    return f"systemd-run {user}--scope -p Delegate=yes crosvm run …"


def own_group(proc: str = "/proc") -> str:
    """Return the directory of the group that this process is in.

    Raises:
        NoCgroupError: no mount shows that group, or cgroup v2 is missing.
    """
    try:
        group = _group_of(f"{proc}/self/cgroup")
        mounts = _mounts(f"{proc}/self/mountinfo")
    except OSError as error:
        raise NoCgroupError(f"cannot read {error.filename}: {error.strerror}") from error
    if not mounts:
        raise NoCgroupError("cgroup v2 is not mounted", _BOOT_HINT)
    for root, mount in mounts:
        if group == root or group.startswith(root.rstrip("/") + "/"):
            return os.path.normpath(f"{mount}/{group[len(root) :]}")
    raise NoCgroupError(f"no mount of cgroup v2 shows our own group, {group}")


def _group_of(path: str) -> str:
    with open(path, encoding="utf-8", errors="surrogateescape") as file:
        for line in file:
            if line.startswith(_V2_LINE):
                return line.rstrip("\n")[len(_V2_LINE) :]
    raise NoCgroupError("this host has no cgroup v2", _BOOT_HINT)


def _mounts(path: str) -> list[tuple[str, str]]:
    """Return the group that each mount of cgroup v2 shows, and the mount point (proc(5))."""
    found = []
    with open(path, encoding="utf-8", errors="surrogateescape") as file:
        for line in file:
            fields, _, source = line.partition(" - ")
            words = fields.split(" ")
            if source.startswith(f"{_V2_TYPE} ") and len(words) > 4:
                found.append((_unescape(words[3]), _unescape(words[4])))
    return found


def _unescape(text: str) -> str:
    r"""Undo the kernel's octal escapes, such as \040 for a blank."""
    first, *rest = text.split("\\")
    return first + "".join(chr(int(part[:3], 8)) + part[3:] for part in rest)


def _is_delegated(path: str) -> bool:
    """Return whether systemd has marked the group as delegated: its owner manages it."""
    try:
        return os.getxattr(path, "user.delegate") == b"1"
    except OSError:
        return False


def _examine(path: str, own: str) -> CgroupSite:
    try:
        available = _read(path, "cgroup.controllers").split()
    except OSError as error:
        raise NoCgroupError(f"{path} is no group of cgroup v2") from error
    controllers = tuple(name for name in CONTROLLERS if name in available)
    if not controllers:
        reason = f"{path} has none of the controllers {', '.join(CONTROLLERS)}"
        raise NoCgroupError(reason, _BOOT_HINT if _is_root(path) else "")
    try:
        _check_kind(path)
        steps_aside = _must_step_aside(path, own)
    except OSError as error:
        raise NoCgroupError(f"cannot read {error.filename}: {error.strerror}") from error
    _check_rights(path, own)
    return CgroupSite(path, controllers, steps_aside)


def _check_kind(path: str) -> None:
    if not _is_root(path):
        kind = _read(path, "cgroup.type").strip()
        if kind != "domain":
            raise NoCgroupError(f"{path} is a {kind} group")


def _must_step_aside(path: str, own: str) -> bool:
    if _is_root(path):
        return False
    processes = _read(path, "cgroup.procs").split()
    if not processes:
        return False
    if path == own and processes == [str(os.getpid())]:
        return True
    raise NoCgroupError(f"{path} has other processes, which a group with limited ones may not have")


def _check_rights(path: str, own: str) -> None:
    """Check that we may make groups there, enable controllers and move our children into them.

    To move a process takes write access also to the closest group above both (cgroup-v2.rst).
    """
    shared = os.path.commonpath((path, own))
    for needed in (
        path,
        f"{path}/cgroup.procs",
        f"{path}/cgroup.subtree_control",
        f"{shared}/cgroup.procs",
    ):
        if not os.access(needed, os.W_OK, effective_ids=True):
            raise NoCgroupError(f"{needed} is not ours to write")


def _is_root(path: str) -> bool:
    """Return whether this is the root group: only that one has no cgroup.type."""
    return not os.path.exists(f"{path}/cgroup.type")


def _read(path: str, name: str) -> str:
    with open(f"{path}/{name}", encoding="utf-8") as file:
        return file.read()
