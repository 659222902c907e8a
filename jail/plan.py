# SPDX-License-Identifier: BSD-3-Clause
"""A jail as a list of steps: what is told, what is tested and what is done are one thing."""

from __future__ import annotations

import os
import resource

from jail.ids import FIRST_DEVICE_UID, JAILED_ID
from jail.namespaces import restricts_user_namespaces
from jail.steps import (
    AssumeIds,
    BecomeUnknown,
    CloseFds,
    DieWithParent,
    DirectoryRoot,
    DropCapabilities,
    EmptyRoot,
    ForbidFiles,
    ForbidUserNamespaces,
    ForgetGroups,
    HoldNoCapability,
    LeaveGroup,
    LimitResources,
    LoadFilter,
    NoNewPrivileges,
    NotDumpable,
)
from seccomp.own_process import signals_to
from sys_util import linux
from sys_util.errors import HostError
from sys_util.facts import fact
from sys_util.typing import TYPE_CHECKING, Final, Protocol

if TYPE_CHECKING:
    from collections.abc import Iterable

    from seccomp import Policy

# Private memory a device may come to hold: several times what Python and its buffers need.
MAX_DATA_BYTES: Final = 256 * 1024 * 1024

# Addresses beside those of guest memory: many times what a device has. What they bound are the page
# tables of memory that is mapped and only read, which no other limit counts.
MAX_OTHER_ADDRESSES: Final = 4 << 30

# Of the one thread; it is neither data nor mapped.
MAX_STACK_BYTES: Final = 8 * 1024 * 1024

# Two eventfds for each of 64 queues, and the fds of the process itself.
MAX_OPEN_FILES: Final = 192

# The vmm: as many for each of 31 devices, its consoles, and the clients of the control socket.
VMM_OPEN_FILES: Final = 8192
# Private memory of the vmm: Python, what the control socket buffers, and the heap of each vCPU
# thread, beside its stack (pthread_attr_setstacksize(3)).
_VMM_DATA_BYTES: Final = 512 * 1024 * 1024
_THREAD_DATA_BYTES: Final = 8 * 1024 * 1024
_UNLIMITED_STACK_BYTES: Final = 8 * 1024 * 1024

# What vmm and warden never need. No limit on the size of files: they write logs and consoles, and
# the warden resizes disks. None on processes: KVM's and vhost's threads in the kernel count too,
# and the vmm's filters know no clone. None on pending signals: kicks of vCPUs are some.
_COMMON_LIMITS: Final = (("CORE", 0), ("MEMLOCK", 0), ("MSGQUEUE", 0), ("NICE", 0), ("RTPRIO", 0))


# To remove the control socket from a directory that is not root's; to map a device's ids.
_WARDEN_CAPABILITIES: Final = frozenset(
    {linux.CAP_DAC_OVERRIDE, linux.CAP_SETGID, linux.CAP_SETUID}
)


class Step(Protocol):
    """One thing that is taken away."""

    def describe(self) -> str:
        """Say what the step does, for people."""

    def apply(self) -> None:
        """Do it to the calling process. An OSError says what the host refused."""


@fact
class JailPlan:
    """Everything between a fresh child process and the untrusted input it will read.

    The filter comes last and apart: between ``enter`` and ``close_door`` the device maps guest
    memory and sets itself up, with nothing of the host in reach but with calls that it will
    never need again.
    """

    steps: tuple[Step, ...]
    door: LoadFilter

    def enter(self) -> None:
        """Take every step but the filter.

        Raises:
            HostError: a step was refused; the process must end.
        """
        for step in self.steps:
            _take(step)

    def close_door(self) -> None:
        """Load the filter.

        Raises:
            HostError: the kernel refused it; the process must end.
        """
        _take(self.door)

    def describe(self) -> list[str]:
        """Say every step, in order."""
        return [step.describe() for step in (*self.steps, self.door)]


def _take(step: Step) -> None:
    try:
        step.apply()
    except OSError as error:
        raise HostError("jail:", step.describe()) from error


def confine_vmm(*, cpus: int, removable_in: Iterable[str] = ()) -> None:
    """Take from the vmm what it does not need for the guest, before it has a second thread.

    Nothing can be imported any more. ``load_filter`` follows, in each thread.

    Args:
        cpus: how many threads it will start.
        removable_in: the directories of the sockets that it removes at its end.

    Raises:
        HostError: a step was refused.
    """
    _drop_privileges(frozenset())
    stack_bytes = resource.getrlimit(resource.RLIMIT_STACK)[0]
    if stack_bytes == resource.RLIM_INFINITY:
        stack_bytes = _UNLIMITED_STACK_BYTES
    data_bytes = _VMM_DATA_BYTES + cpus * (_THREAD_DATA_BYTES + stack_bytes)
    _take(LimitResources((*_COMMON_LIMITS, ("DATA", data_bytes), ("NOFILE", VMM_OPEN_FILES))))
    _take(NoNewPrivileges())
    _take(NotDumpable())
    _take(ForbidFiles(tuple(removable_in)))


def confine_warden() -> None:
    """Leave the warden of root what clones its devices, maps their ids and tidies up.

    CAP_SYS_ADMIN, too, where the host lets nobody else make namespaces for them.

    It stays dumpable, as its children are born: else their id maps would belong to root. It keeps
    the file system, since its children mount their roots, which Landlock forbids for good.
    ``load_filter`` follows when everything is imported.

    Raises:
        HostError: a step was refused.
    """
    keep = _WARDEN_CAPABILITIES
    if restricts_user_namespaces():
        keep |= {linux.CAP_SYS_ADMIN}
    _drop_privileges(keep)
    _take(LimitResources(_COMMON_LIMITS))
    _take(NoNewPrivileges())


def _drop_privileges(keep: frozenset[int]) -> None:
    """Drop what this process has of capabilities and groups; an ordinary user has no capability."""
    held = linux.capabilities()
    if linux.CAP_SETGID in held:
        _take(ForgetGroups())
    if held:
        _take(DropCapabilities(keep & held, for_good=linux.CAP_SETPCAP in held))


def load_filter(policy: Policy) -> None:
    """Close the door of the calling thread, be it of the vmm or the warden, for good.

    Whatever the policy says, ``tgkill`` reaches this process alone.

    Raises:
        HostError: the kernel refused the filter.
    """
    # A recorder's socket is closed when it has served a thread.
    recorder = None if policy.recorder is None else os.dup(policy.recorder)
    bpf = policy.bpf if recorder is not None else signals_to(os.getpid(), policy)
    _take(LoadFilter(policy.name, bpf, recorder))


def parser_jail(
    policy: Policy,
    *,
    keep_fds: Iterable[int],
    max_seconds: int,
    max_data_bytes: int,
    max_file_bytes: int,
) -> JailPlan:
    """Return the jail of a process that reads a file from outside and ends.

    It is no other process's parent and has no namespaces, whose making would take longer than the
    reading of most kernels. What it can do is in its filter; behind that it can open no descriptor,
    start no process, and is as root somebody else.

    Args:
        policy: its compiled policy.
        keep_fds: the descriptors that stay open, and there will be no others.
        max_seconds: processor time; after it, SIGXCPU ends the process.
        max_data_bytes: private memory that it may hold, with what it inherited.
        max_file_bytes: the highest offset that it may write at.
    """
    held = linux.capabilities()
    ids = held & {linux.CAP_SETGID, linux.CAP_SETUID}
    can_end_others = linux.CAP_KILL in held
    new_ids = len(ids) == 2 and can_end_others
    unknown = (BecomeUnknown(FIRST_DEVICE_UID + os.getpid()),) if new_ids else ()
    return JailPlan(
        steps=(
            CloseFds(frozenset(keep_fds)),
            LeaveGroup(),
            *_lose_privileges(held, ids),
            *unknown,
            DieWithParent(),  # after the change of ids, which clears the request
            LimitResources(
                (("CPU", max_seconds), ("DATA", max_data_bytes), ("FSIZE", max_file_bytes)),
                raisable=frozenset({"CPU"}),  # so that SIGXCPU tells what was exceeded
            ),
            *_be_alone(),
        ),
        door=LoadFilter(policy.name, policy.bpf),
    )


def relay_jail(policy: Policy) -> JailPlan:
    """Return the jail of a process that passes bytes on, between descriptors that it has.

    It keeps the ids of the user, by which the log daemon knows whose lines these are, and has
    closed what it does not need. Otherwise it is as that of ``parser_jail``.
    """
    return JailPlan(
        steps=(
            *_lose_privileges(linux.capabilities()),
            LimitResources((("DATA", MAX_DATA_BYTES), ("FSIZE", 0))),
            *_be_alone(),
        ),
        door=LoadFilter(policy.name, policy.bpf),
    )


def _lose_privileges(held: frozenset[int], keep: frozenset[int] = frozenset()) -> tuple[Step, ...]:
    """Lose what root has; ``keep`` goes as soon as the ids were changed."""
    if not held:
        return ()
    groups = (ForgetGroups(),) if linux.CAP_SETGID in held else ()
    return (*groups, DropCapabilities(keep, for_good=linux.CAP_SETPCAP in held))


def _be_alone() -> tuple[Step, ...]:
    """Come to nothing new: no capability, process, file or descriptor."""
    return (
        HoldNoCapability(),
        LimitResources(
            (
                ("CORE", 0),
                ("MEMLOCK", 0),
                ("MSGQUEUE", 0),
                ("NICE", 0),
                ("NPROC", 0),
                ("RTPRIO", 0),
                ("SIGPENDING", 0),
                ("STACK", MAX_STACK_BYTES),
            )
        ),
        NoNewPrivileges(),
        ForbidFiles(alone=True),
        LimitResources((("NOFILE", 0),)),  # no number is below it
        NotDumpable(),
    )


def device_jail(
    *,
    policy_name: str,
    bpf: bytes,
    keep_fds: Iterable[int],
    max_file_bytes: int,
    ids: tuple[int | None, int | None] = (JAILED_ID, JAILED_ID),
    root_fd: int | None = None,
    max_open_files: int = MAX_OPEN_FILES,
    max_processes: int = 0,
    memory_bytes: int | None = None,
    recorder: int | None = None,
) -> JailPlan:
    """Return the one jail that every device process enters, and every broker.

    Args:
        policy_name: the policy's name, for messages.
        bpf: the compiled policy.
        keep_fds: the descriptors that stay open.
        max_file_bytes: the largest file offset the device may write at, which the warden changes
            when it resizes the file; 0 for none.
        ids: user and group that it becomes; see ``AssumeIds``.
        root_fd: a directory of the host that becomes its root, for a broker of sockets; any device
            has an empty one.
        max_open_files: descriptors at one time.
        max_processes: processes and threads of its user; the kernel's own on its behalf count too.
        memory_bytes: guest memory, which it will map; ``None`` for as many addresses as it likes.
        recorder: a socket that stays open until the filter is loaded; see ``LoadFilter``.
    """
    addresses = () if memory_bytes is None else (("AS", memory_bytes + MAX_OTHER_ADDRESSES),)
    return JailPlan(
        steps=(
            CloseFds(frozenset(keep_fds).union(() if recorder is None else (recorder,))),
            LeaveGroup(),
            AssumeIds(*ids),
            DieWithParent(),  # after the change of ids, which clears the request
            ForbidUserNamespaces(),
            EmptyRoot(),
            *(() if root_fd is None else (DirectoryRoot(root_fd),)),
            LimitResources(
                (
                    *addresses,
                    ("CORE", 0),
                    ("DATA", MAX_DATA_BYTES),
                    ("FSIZE", max_file_bytes),
                    ("MEMLOCK", 0),
                    ("MSGQUEUE", 0),
                    ("NICE", 0),
                    ("NOFILE", max_open_files),
                    ("NPROC", max_processes),
                    ("RTPRIO", 0),
                    ("SIGPENDING", 0),
                    ("STACK", MAX_STACK_BYTES),
                ),
                raisable=frozenset({"FSIZE"} if max_file_bytes else ()),
            ),
            DropCapabilities(),
            NoNewPrivileges(),
            ForbidFiles(alone=True),
            NotDumpable(),
        ),
        door=LoadFilter(policy_name, bpf, recorder),
    )
