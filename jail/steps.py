# SPDX-License-Identifier: BSD-3-Clause
"""The steps of entering a jail, roughly in the order in which a plan takes them.

If the kernel refuses a step, ``apply`` raises ``OSError``, and the plan adds which step it was.
"""

from __future__ import annotations

import errno
import os
import resource

# Only for the constants in python-prctl's C module: its Python module builds 200 functions that we
# do not use, which takes 2 ms of every start. We make every call through ``linux.prctl``.
import _prctl

from sys_util import landlock, linux, signal
from sys_util.facts import fact
from sys_util.log import get_logger
from sys_util.seccomp_notify import load_recording_filter
from sys_util.typing import Final

log = get_logger("crosvm.jail")

# Where we mount the tmpfs that becomes the root: any directory that every host has.
_MOUNT_POINT: Final = "/proc"

_SECUREBITS: Final = (
    _prctl.SECBIT_NOROOT
    | _prctl.SECBIT_NOROOT_LOCKED
    | _prctl.SECBIT_NO_SETUID_FIXUP
    | _prctl.SECBIT_NO_SETUID_FIXUP_LOCKED
    | _prctl.SECBIT_KEEP_CAPS_LOCKED
)

# The kernel's capability sets have 64 bits. We try all numbers, because python-prctl knows only the
# capabilities of its own time and would leave newer ones in the bounding set.
_MAX_CAPABILITIES: Final = 64

_RLIMITS: Final = {
    "AS": resource.RLIMIT_AS,
    "CORE": resource.RLIMIT_CORE,
    "CPU": resource.RLIMIT_CPU,
    "DATA": resource.RLIMIT_DATA,
    "FSIZE": resource.RLIMIT_FSIZE,
    "MEMLOCK": resource.RLIMIT_MEMLOCK,
    "MSGQUEUE": resource.RLIMIT_MSGQUEUE,
    "NICE": resource.RLIMIT_NICE,
    "NOFILE": resource.RLIMIT_NOFILE,
    "NPROC": resource.RLIMIT_NPROC,
    "RTPRIO": resource.RLIMIT_RTPRIO,
    "SIGPENDING": resource.RLIMIT_SIGPENDING,
    "STACK": resource.RLIMIT_STACK,
}


@fact
class DieWithParent:
    """The process never outlives its parent (PR_SET_PDEATHSIG)."""

    def describe(self) -> str:
        """Say what the step does."""
        return "die with the parent"

    def apply(self) -> None:
        """Ask the kernel for SIGKILL when the parent ends; a change of ids clears the request."""
        linux.prctl(linux.PR_SET_PDEATHSIG, signal.SIGKILL)


@fact
class CloseFds:
    """The process keeps only the descriptors in ``keep`` of those that it inherited."""

    keep: frozenset[int]

    def describe(self) -> str:
        """Say what the step does."""
        return f"close all descriptors but {len(self.keep)}"

    def apply(self) -> None:
        """Close them."""
        linux.close_all_fds_except(set(self.keep))


@fact
class LeaveGroup:
    """The process is alone in its process group, so a signal to its group reaches nobody else.

    A PID namespace does not prevent that: a process inherits its parent's group even into a new
    namespace.
    """

    def describe(self) -> str:
        """Say what the step does."""
        return "leave the parent's process group"

    def apply(self) -> None:
        """Become the leader of a new group, not of a session: that could acquire a terminal."""
        os.setpgid(0, 0)


@fact
class ForbidUserNamespaces:
    """The process can make no user namespace, in which it would have capabilities again."""

    def describe(self) -> str:
        """Say what the step does."""
        return "make no user namespaces"

    def apply(self) -> None:
        """Set the limit of this user namespace, as long as /proc is in reach (namespaces(7)).

        Where /proc cannot be written, only the seccomp filter prevents new namespaces.
        """
        try:
            fd = os.open("/proc/sys/user/max_user_namespaces", os.O_WRONLY | os.O_CLOEXEC)
        except OSError:
            return
        try:
            os.write(fd, b"0")
        finally:
            os.close(fd)


@fact
class AssumeIds:
    """The process becomes the only user and the only group of its user namespace.

    ``None``: the namespace has no user, or no group, and the process keeps its own.
    """

    uid: int | None
    gid: int | None

    def describe(self) -> str:
        """Say what the step does."""
        uid, gid = ("as it was" if one is None else one for one in (self.uid, self.gid))
        return f"become uid {uid}, gid {gid}"

    def apply(self) -> None:
        """Set real, effective and saved ids; the next steps still have the capabilities."""
        if self.gid is not None:
            os.setresgid(self.gid, self.gid, self.gid)
        if self.uid is not None:
            os.setresuid(self.uid, self.uid, self.uid)


@fact
class ForgetGroups:
    """The process has no supplementary groups (setgroups(2)), if it has CAP_SETGID.

    A user namespace can forbid setgroups even to its root (user_namespaces(7)): the groups stay.
    """

    def describe(self) -> str:
        """Say what the step does."""
        return "leave every supplementary group"

    def apply(self) -> None:
        """Leave them, before CAP_SETGID is dropped."""
        try:
            os.setgroups([])
        except PermissionError:
            log.debug("the supplementary groups stay")


@fact
class EmptyRoot:
    """The process sees one empty directory that it cannot write to."""

    def describe(self) -> str:
        """Say what the step does."""
        return "pivot into an empty, read-only root"

    def apply(self) -> None:
        """Mount an empty tmpfs, make it the root, and unmount everything else."""
        flags = linux.MS_NOSUID | linux.MS_NODEV | linux.MS_NOEXEC
        linux.mount("", "/", "", linux.MS_REC | linux.MS_PRIVATE)
        linux.mount("jail", _MOUNT_POINT, "tmpfs", flags, "size=4k,nr_inodes=1,mode=555")
        os.chdir(_MOUNT_POINT)
        linux.pivot_root(".", ".")
        linux.umount2(".", linux.MNT_DETACH)
        os.chdir("/")
        linux.mount("", "/", "", linux.MS_REMOUNT | linux.MS_RDONLY | flags)


@fact
class DirectoryRoot:
    """The process sees only the directory behind ``fd`` and its content; ``fd`` is closed.

    It follows ``EmptyRoot``, so the directory is in no mount of this jail. The process cannot leave
    the directory once it has no descriptor of another one and no capability.
    """

    fd: int

    def describe(self) -> str:
        """Say what the step does."""
        return f"make the directory of descriptor {self.fd} the root"

    def apply(self) -> None:
        """Change the root: the process needs search permission on that directory (chroot(2))."""
        os.fchdir(self.fd)
        os.chroot(".")
        os.close(self.fd)


@fact
class LimitResources:
    """The process can use no more of the host than ``limits`` say (getrlimit(2)).

    The hard limit of those in ``raisable`` stays as it is, so that another process can raise the
    soft one. The process itself cannot: its filter denies the call.
    """

    limits: tuple[tuple[str, int], ...]
    raisable: frozenset[str] = frozenset()

    def describe(self) -> str:
        """Say what the step does."""
        return "limit " + ", ".join(f"{name}={value:#x}" for name, value in self.limits)

    def apply(self) -> None:
        """Set the soft limit and, unless raisable, the hard one; never raise a hard limit."""
        for name, value in self.limits:
            kind = _RLIMITS[name]
            hard = resource.getrlimit(kind)[1]
            bound = value if hard == resource.RLIM_INFINITY else min(value, hard)
            resource.setrlimit(kind, (bound, hard if name in self.raisable else bound))


@fact
class DropCapabilities:
    """The process has only the capabilities in ``keep`` and cannot get others (capabilities(7)).

    ``for_good``: drop the others from the bounding set and lock the securebits, which needs
    CAP_SETPCAP. Without it no_new_privs must suffice: no program can grant a capability then.
    """

    keep: frozenset[int] = frozenset()
    for_good: bool = True

    def describe(self) -> str:
        """Say what the step does."""
        kept = f"all but {len(self.keep)} capabilities" if self.keep else "every capability"
        return f"drop {kept}" + (" and lock the securebits" if self.for_good else "")

    def apply(self) -> None:
        """Change the bounding set first, while the process still has CAP_SETPCAP."""
        if self.for_good:
            linux.prctl(_prctl.PR_SET_SECUREBITS, _SECUREBITS)
            self._empty_bounding_set()
        linux.set_capabilities(sum(1 << capability for capability in self.keep))

    def _empty_bounding_set(self) -> None:
        for capability in range(_MAX_CAPABILITIES):
            if capability in self.keep:
                continue
            try:
                linux.prctl(linux.PR_CAPBSET_DROP, capability)
            except OSError as error:
                if error.errno != errno.EINVAL:
                    raise
                break  # the first number that this kernel does not know


@fact
class HoldNoCapability:
    """The process has no capability in any set but the bounding set; needs no capability."""

    def describe(self) -> str:
        """Say what the step does."""
        return "give up every capability"

    def apply(self) -> None:
        """Give up all, including the ambient ones that a service manager gave a user's process."""
        linux.set_capabilities(0)


@fact
class BecomeUnknown:
    """The process becomes a user and a group that nothing else on the host has.

    That needs CAP_SETUID and CAP_SETGID. If our user namespace does not have the id, the process
    keeps its ids, and the other steps must suffice.
    """

    host_id: int

    def describe(self) -> str:
        """Say what the step does."""
        return f"become uid and gid {self.host_id:#x}"

    def apply(self) -> None:
        """Set real, effective and saved ids."""
        try:
            os.setresgid(self.host_id, self.host_id, self.host_id)
            os.setresuid(self.host_id, self.host_id, self.host_id)
        except OSError as error:
            if error.errno != errno.EINVAL:
                raise


@fact
class NoNewPrivileges:
    """No execve(2) can grant privileges; the kernel demands this before it loads a filter."""

    def describe(self) -> str:
        """Say what the step does."""
        return "set no_new_privs"

    def apply(self) -> None:
        """Set it, for this process and all it will fork."""
        linux.prctl(linux.PR_SET_NO_NEW_PRIVS, 1)


@fact
class NotDumpable:
    """No other process of the same user may trace the process or read its memory."""

    def describe(self) -> str:
        """Say what the step does."""
        return "clear dumpable"

    def apply(self) -> None:
        """Clear it (PR_SET_DUMPABLE)."""
        linux.prctl(linux.PR_SET_DUMPABLE, 0)


@fact
class ForbidFiles:
    """No file can be opened, made or changed (landlock(7)).

    It holds for the calling thread and the threads that it starts later. Open descriptors stay
    usable. Files in the directories ``removable_in`` can still be removed. The process cannot mount
    anything any more, so it cannot make a jail. ``alone``: it cannot signal other processes either,
    if the kernel can forbid that. ``but_opening``: files can be opened,
    and new ones made.
    """

    removable_in: tuple[str, ...] = ()
    alone: bool = False
    but_opening: bool = False

    def describe(self) -> str:
        """Say what the step does."""
        but = f", but for removing from {', '.join(self.removable_in)}" if self.removable_in else ""
        but += (
            ", but for opening those that are there and making new ones" if self.but_opening else ""
        )
        signals = " and signals to others" if self.alone else ""
        return f"give up all files{but}{signals} (Landlock)"

    def apply(self) -> None:
        """Give them up; on a kernel without Landlock the other steps must suffice."""
        if not landlock.forbid_files(
            self.removable_in, alone=self.alone, but_opening=self.but_opening
        ):
            log.debug("this kernel has no Landlock")


@fact
class LoadFilter:
    """The process can make only the system calls of the policy. This is always the last step.

    ``all_threads``: the filter is for the threads that run already, too. With ``recorder``, a
    socket, the process at its other end decides about each call instead.
    """

    policy_name: str
    bpf: bytes
    recorder: int | None = None
    all_threads: bool = False

    def describe(self) -> str:
        """Say what the step does."""
        if self.recorder is not None:
            return f"have the system calls for {self.policy_name} recorded, and few denied"
        return f"load the seccomp filter {self.policy_name}"

    def apply(self) -> None:
        """Load it into the calling thread, or into all threads."""
        if self.recorder is None:
            linux.load_seccomp_filter(self.bpf, all_threads=self.all_threads)
        else:
            load_recording_filter(
                self.bpf, self.recorder, self.policy_name, all_threads=self.all_threads
            )
