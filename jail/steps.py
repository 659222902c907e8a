# SPDX-License-Identifier: BSD-3-Clause
"""The steps of entering a jail, in the order in which a plan takes them.

Each step says what it does and does it; an ``OSError`` leaves ``apply`` as it is, and the plan
adds which step it was.
"""

from __future__ import annotations

import errno
import os
import resource
import signal

# The numbers of python-prctl's C module: its Python half builds 200 functions that nobody here
# calls, and takes 2 ms of every start for it. ``linux.prctl`` makes every call.
import _prctl

from sys_util import landlock, linux
from sys_util.facts import fact
from sys_util.log import get_logger
from sys_util.seccomp_notify import load_recording_filter
from sys_util.typing import Final

log = get_logger("crosvm.jail")

# Any directory that exists everywhere: the tmpfs that is mounted there becomes the root.
_MOUNT_POINT: Final = "/proc"

_SECUREBITS: Final = (
    _prctl.SECBIT_NOROOT
    | _prctl.SECBIT_NOROOT_LOCKED
    | _prctl.SECBIT_NO_SETUID_FIXUP
    | _prctl.SECBIT_NO_SETUID_FIXUP_LOCKED
    | _prctl.SECBIT_KEEP_CAPS_LOCKED
)

# The kernel's sets have 64 bits. python-prctl refuses the numbers that are newer than itself, so
# that its own way to empty the bounding set would leave those in.
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
    """The process never outlives the one that made it (PR_SET_PDEATHSIG)."""

    def describe(self) -> str:
        """Say what the step does."""
        return "die with the parent"

    def apply(self) -> None:
        """Ask the kernel for SIGKILL when the parent ends; credentials changes clear it."""
        linux.prctl(linux.PR_SET_PDEATHSIG, signal.SIGKILL)


@fact
class CloseFds:
    """Nothing that the parent had open is left, but for ``keep``."""

    keep: frozenset[int]

    def describe(self) -> str:
        """Say what the step does."""
        return f"close all descriptors but {len(self.keep)}"

    def apply(self) -> None:
        """Close them."""
        linux.close_all_fds_except(set(self.keep))


@fact
class LeaveGroup:
    """The process is alone in its process group, so that a signal to its own reaches nobody else.

    A PID namespace does not help there: the group is the parent's, whatever number it has inside.
    """

    def describe(self) -> str:
        """Say what the step does."""
        return "leave the parent's process group"

    def apply(self) -> None:
        """Lead a group, and no session: who leads one could get a terminal."""
        os.setpgid(0, 0)


@fact
class ForbidUserNamespaces:
    """No user namespace can be made in this one, and so no capability over any other kind."""

    def describe(self) -> str:
        """Say what the step does."""
        return "make no user namespaces"

    def apply(self) -> None:
        """Set the limit of this namespace, while it can be seen (namespaces(7)).

        A host that shows no writable /proc leaves this one to the filter.
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
    """The process becomes the one user of its user namespace.

    ``None``: it stays who it is, for the namespace has no such user or group.
    """

    uid: int | None
    gid: int | None

    def describe(self) -> str:
        """Say what the step does."""
        uid, gid = ("as it was" if one is None else one for one in (self.uid, self.gid))
        return f"become uid {uid}, gid {gid}"

    def apply(self) -> None:
        """Set all three of each; the capabilities of the namespace stay for the next steps."""
        if self.gid is not None:
            os.setresgid(self.gid, self.gid, self.gid)
        if self.uid is not None:
            os.setresuid(self.uid, self.uid, self.uid)


@fact
class ForgetGroups:
    """The process is in no group but its own (setgroups(2)), which takes CAP_SETGID.

    Root of a user namespace may lack it as any user does (user_namespaces(7)), and stays in them.
    """

    def describe(self) -> str:
        """Say what the step does."""
        return "leave every supplementary group"

    def apply(self) -> None:
        """Leave them, before CAP_SETGID goes."""
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
        """Mount an empty tmpfs, make it the root, and let go of everything else."""
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
    """The process sees the directory behind ``fd`` and what lies in it; the descriptor is closed.

    It follows ``EmptyRoot``: the directory is in none of the mounts of this jail, and nothing leads
    back to it once the process has neither a descriptor nor a capability.
    """

    fd: int

    def describe(self) -> str:
        """Say what the step does."""
        return f"make the directory of descriptor {self.fd} the root"

    def apply(self) -> None:
        """Change the root, which takes search permission on that directory alone (chroot(2))."""
        os.fchdir(self.fd)
        os.chroot(".")
        os.close(self.fd)


@fact
class LimitResources:
    """Bounds on what the process may take of the host (getrlimit(2)).

    Another process may raise those in ``raisable``; the filter lets none raise its own.
    """

    limits: tuple[tuple[str, int], ...]
    raisable: frozenset[str] = frozenset()

    def describe(self) -> str:
        """Say what the step does."""
        return "limit " + ", ".join(f"{name}={value:#x}" for name, value in self.limits)

    def apply(self) -> None:
        """Set soft and hard limit alike, but for the raisable ones; never raise one."""
        for name, value in self.limits:
            kind = _RLIMITS[name]
            hard = resource.getrlimit(kind)[1]
            bound = value if hard == resource.RLIM_INFINITY else min(value, hard)
            resource.setrlimit(kind, (bound, hard if name in self.raisable else bound))


@fact
class DropCapabilities:
    """Only ``keep`` is held, and nothing else can come back (capabilities(7)).

    ``for_good``: the bounding set is emptied and the securebits are locked, which takes
    CAP_SETPCAP. Where that is missing no_new_privs has to do: no program can give a capability.
    """

    keep: frozenset[int] = frozenset()
    for_good: bool = True

    def describe(self) -> str:
        """Say what the step does."""
        kept = f"all but {len(self.keep)} capabilities" if self.keep else "every capability"
        return f"drop {kept}" + (" and lock the securebits" if self.for_good else "")

    def apply(self) -> None:
        """Empty the bounding set first, while CAP_SETPCAP is still there."""
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
    """Every set but the bounding set is empty; this needs no capability."""

    def describe(self) -> str:
        """Say what the step does."""
        return "give up every capability"

    def apply(self) -> None:
        """Give up also those that an ordinary user's service manager gave (ambient)."""
        linux.set_capabilities(0)


@fact
class BecomeUnknown:
    """The process becomes a user and a group that nothing else has on the host.

    That takes CAP_SETUID and CAP_SETGID. Where the ids do not exist, in a user namespace that has
    fewer, it stays who it is, and the other steps have to do.
    """

    host_id: int

    def describe(self) -> str:
        """Say what the step does."""
        return f"become uid and gid {self.host_id:#x}"

    def apply(self) -> None:
        """Set all three of each."""
        try:
            os.setresgid(self.host_id, self.host_id, self.host_id)
            os.setresuid(self.host_id, self.host_id, self.host_id)
        except OSError as error:
            if error.errno != errno.EINVAL:
                raise


@fact
class NoNewPrivileges:
    """No execve(2) can grant what was taken; the filter needs it."""

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
    """No file can be opened, made or changed, wherever a path leads (landlock(7)).

    Files of the directories ``removable_in`` can still be removed. It holds for the calling thread
    and those that it starts from then on; what is open stays usable. A process under it can mount
    nothing, and so make no jail. ``alone``: it can signal no other process, either, where the
    kernel knows that.
    """

    removable_in: tuple[str, ...] = ()
    alone: bool = False

    def describe(self) -> str:
        """Say what the step does."""
        but = f", but for removing from {', '.join(self.removable_in)}" if self.removable_in else ""
        signals = " and signals to others" if self.alone else ""
        return f"give up all files{but}{signals} (Landlock)"

    def apply(self) -> None:
        """Give them up; on a kernel without Landlock the other steps have to do."""
        if not landlock.forbid_files(self.removable_in, alone=self.alone):
            log.debug("this kernel has no Landlock")


@fact
class LoadFilter:
    """Only the system calls of the policy are left; the last step there can be.

    With ``recorder``, a socket, the filter asks who is at its other end about every call.
    """

    policy_name: str
    bpf: bytes
    recorder: int | None = None

    def describe(self) -> str:
        """Say what the step does."""
        if self.recorder is not None:
            return f"have the system calls for {self.policy_name} recorded, and few denied"
        return f"load the seccomp filter {self.policy_name}"

    def apply(self) -> None:
        """Load it into the calling thread."""
        if self.recorder is None:
            linux.load_seccomp_filter(self.bpf)
        else:
            load_recording_filter(self.bpf, self.recorder, self.policy_name)
