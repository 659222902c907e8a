# SPDX-License-Identifier: BSD-3-Clause
"""A jail as a list of steps. The same list is carried out, printed and tested."""

from __future__ import annotations

import os
import resource

from jail.ids import FIRST_DEVICE_UID, JAILED_ID
from jail.namespaces import CONFINED_HINT, restricts_user_namespaces
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

# Private memory of a device: several times what Python and the device's buffers need.
MAX_DATA_BYTES: Final = 256 * 1024 * 1024

# Address space of a device, not counting guest memory: many times what it needs. It bounds the page
# tables of memory that is mapped and only read, which no other limit counts.
MAX_OTHER_ADDRESSES: Final = 4 << 30

# The stack of a process's only thread; RLIMIT_DATA does not count it.
MAX_STACK_BYTES: Final = 8 * 1024 * 1024

# A device has two eventfds for each of at most 64 queues, and a few descriptors of its own.
MAX_OPEN_FILES: Final = 192

# The vmm has those eventfds for each of 31 devices, its consoles and clients of its control socket.
VMM_OPEN_FILES: Final = 8192
# Private memory of the vmm: for Python and the buffers of the control socket, and for each vCPU
# thread its heap; the thread's stack is added to it (pthread_attr_setstacksize(3)).
_VMM_DATA_BYTES: Final = 512 * 1024 * 1024
_THREAD_DATA_BYTES: Final = 8 * 1024 * 1024
_UNLIMITED_STACK_BYTES: Final = 8 * 1024 * 1024

# Limits on what the vmm and the warden never use. There is no limit on the size of files: both
# write logs and consoles, and the warden resizes disks. None on processes: the kernel threads of
# KVM and vhost count too, and the vmm's filters allow no clone anyway. None on pending signals: the
# vmm kicks a vCPU thread out of KVM_RUN with a signal.
COMMON_LIMITS: Final = (("CORE", 0), ("MEMLOCK", 0), ("MSGQUEUE", 0), ("NICE", 0), ("RTPRIO", 0))


# The warden removes the control socket, also from a directory of another user, and maps ids.
_WARDEN_CAPABILITIES: Final = frozenset(
    {linux.CAP_DAC_OVERRIDE, linux.CAP_SETGID, linux.CAP_SETUID}
)


class Step(Protocol):
    """One thing that is taken from the process."""

    def describe(self) -> str:
        """Say what the step does, for people."""

    def apply(self) -> None:
        """Do it to the calling process.

        Raises:
            OSError: the host refused it.
        """


@fact
class JailPlan:
    """Everything that happens to a new child process before it reads untrusted input.

    The seccomp filter is loaded last and in a call of its own. Between ``enter`` and
    ``load_filter`` the device maps guest memory, starts its threads and sets itself up. It can no
    longer reach anything of the host then, but it needs system calls that the filter denies.
    ``late_steps`` are what it must be set up for; they come right before the filter.
    """

    steps: tuple[Step, ...]
    filter_step: LoadFilter
    late_steps: tuple[Step, ...] = ()

    def enter(self) -> None:
        """Take every step but the filter.

        Raises:
            HostError: a step was refused; the process must end.
        """
        for step in self.steps:
            take(step)

    def load_filter(self) -> None:
        """Take the late steps and load the filter.

        Raises:
            HostError: the kernel refused it; the process must end.
        """
        for step in self.late_steps:
            take(step)
        take(self.filter_step)

    def describe(self) -> list[str]:
        """Return what each step does, in order."""
        return [step.describe() for step in (*self.steps, *self.late_steps, self.filter_step)]


def take(step: Step) -> None:
    """Take a step now.

    Raises:
        HostError: it was refused.
    """
    try:
        step.apply()
    except OSError as error:
        hint = CONFINED_HINT if isinstance(error, PermissionError) else ""
        raise HostError("jail:", step.describe(), hint) from error


def confine_vmm(*, cpus: int, removable_in: Iterable[str] = ()) -> None:
    """Take from the vmm all that it does not need to run the guest.

    Call it before the vmm starts a second thread. No module can be imported afterwards. Each thread
    calls ``load_filter`` later.

    Args:
        cpus: how many threads it will start.
        removable_in: the directories of the sockets that it removes at its end.

    Raises:
        HostError: a step was refused.
    """
    drop_privileges(frozenset())
    stack_bytes = resource.getrlimit(resource.RLIMIT_STACK)[0]
    if stack_bytes == resource.RLIM_INFINITY:
        stack_bytes = _UNLIMITED_STACK_BYTES
    data_bytes = _VMM_DATA_BYTES + cpus * (_THREAD_DATA_BYTES + stack_bytes)
    take(LimitResources((*COMMON_LIMITS, ("DATA", data_bytes), ("NOFILE", VMM_OPEN_FILES))))
    take(NoNewPrivileges())
    take(NotDumpable())
    take(ForbidFiles(tuple(removable_in)))


def confine_warden() -> None:
    """Take from the warden all that it does not need.

    If root runs it, it keeps the capabilities to map the ids of devices and to tidy up, and on a
    host that restricts user namespaces CAP_SYS_ADMIN too, to make them.

    It stays dumpable: the kernel gives the /proc files of a process that is not dumpable to root,
    and its children, which inherit that, could get no id maps. It keeps the file system: its
    children mount their roots, and Landlock would forbid that for good. It calls ``load_filter``
    later, when every module is imported.

    Raises:
        HostError: a step was refused.
    """
    keep = _WARDEN_CAPABILITIES
    if restricts_user_namespaces():
        keep |= {linux.CAP_SYS_ADMIN}
    drop_privileges(keep)
    take(LimitResources(COMMON_LIMITS))
    take(NoNewPrivileges())


def drop_privileges(keep: frozenset[int]) -> None:
    """Drop the groups and all capabilities but ``keep``, where this process has any."""
    held = linux.capabilities()
    if linux.CAP_SETGID in held:
        take(ForgetGroups())
    if held:
        take(DropCapabilities(keep & held, for_good=linux.CAP_SETPCAP in held))


def load_filter(policy: Policy) -> None:
    """Load the filter into the calling thread of the vmm or the warden.

    Unless the process is recorded, the filter lets ``tgkill`` reach this process only, whatever the
    policy says.

    Raises:
        HostError: the kernel refused the filter.
    """
    # Loading a recording filter closes the socket, and each thread needs one.
    recorder = None if policy.recorder is None else os.dup(policy.recorder)
    bpf = policy.bpf if recorder is not None else signals_to(os.getpid(), policy)
    take(LoadFilter(policy.name, bpf, recorder))


def parser_jail(
    policy: Policy,
    *,
    keep_fds: Iterable[int],
    max_seconds: int,
    max_data_bytes: int,
    max_file_bytes: int,
) -> JailPlan:
    """Return the jail of a process that reads one untrusted file and ends.

    It gets no namespaces, because making them takes longer than reading most kernels. The seccomp
    filter is what confines it. Should the filter fail, the process still cannot open a descriptor
    or start a process, and if root runs the VM, it has the ids of an unknown user.

    Args:
        policy: the compiled policy of the process.
        keep_fds: the descriptors that stay open; it cannot get others.
        max_seconds: processor time, after which SIGXCPU ends the process.
        max_data_bytes: private memory that it may have, which includes what it inherited.
        max_file_bytes: the largest file offset that it may write at.
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
            *lose_privileges(held, ids),
            *unknown,
            DieWithParent(),  # after the change of ids, which clears the request
            LimitResources(
                (("CPU", max_seconds), ("DATA", max_data_bytes), ("FSIZE", max_file_bytes)),
                # Raisable, because at the hard limit the kernel sends SIGKILL, not SIGXCPU.
                raisable=frozenset({"CPU"}),
            ),
            *gain_nothing(),
        ),
        filter_step=LoadFilter(policy.name, policy.bpf),
    )


def relay_jail(policy: Policy) -> JailPlan:
    """Return the jail of a process that only copies bytes between descriptors that it has.

    It is like ``parser_jail`` with two differences. The process keeps the ids of its user, which
    the log daemon records with each line. It has already closed the descriptors that it does not
    need.
    """
    return JailPlan(
        steps=(
            *lose_privileges(linux.capabilities()),
            LimitResources((("DATA", MAX_DATA_BYTES), ("FSIZE", 0))),
            *gain_nothing(),
        ),
        filter_step=LoadFilter(policy.name, policy.bpf),
    )


def lose_privileges(held: frozenset[int], keep: frozenset[int] = frozenset()) -> tuple[Step, ...]:
    """Drop the groups and capabilities of root; ``keep`` is needed once more, to change the ids."""
    if not held:
        return ()
    groups = (ForgetGroups(),) if linux.CAP_SETGID in held else ()
    return (*groups, DropCapabilities(keep, for_good=linux.CAP_SETPCAP in held))


def gain_nothing(
    max_open_files: int = 0, *, opens: bool = False, keep: frozenset[int] = frozenset()
) -> tuple[Step, ...]:
    """Make sure that the process gets no new capability; unless it ``opens``, no process or file.

    By default it gets no new descriptor either: none can have a number below 0.
    """
    return (
        *(() if keep else (HoldNoCapability(),)),
        LimitResources(
            (
                ("CORE", 0),
                ("MEMLOCK", 0),
                ("MSGQUEUE", 0),
                ("NICE", 0),
                *(() if opens else (("NPROC", 0),)),
                ("RTPRIO", 0),
                ("SIGPENDING", 0),
                ("STACK", MAX_STACK_BYTES),
            )
        ),
        NoNewPrivileges(),
        ForbidFiles(alone=True, but_opening=opens),
        LimitResources((("NOFILE", max_open_files),)),
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
    threads: int = 0,
    memory_bytes: int | None = None,
    recorder: int | None = None,
) -> JailPlan:
    """Return the jail of a device process or a broker.

    Args:
        policy_name: the policy's name, for messages.
        bpf: the compiled policy.
        keep_fds: the descriptors that stay open.
        max_file_bytes: the largest file offset that it may write at; 0 if it writes no file. The
            warden raises it when it resizes the file.
        ids: the user and the group that it becomes; see ``AssumeIds``.
        root_fd: a directory of the host that becomes its root, for a broker of sockets; ``None``
            for an empty root, as every device has.
        max_open_files: how many descriptors it may have open at one time.
        max_processes: how many processes and threads its user may have once the filter is loaded.
            Threads that the kernel starts for it count too.
        threads: how many threads it starts before that.
        memory_bytes: the size of guest memory, which it will map; ``None`` for no limit on its
            address space.
        recorder: a socket that stays open until the filter is loaded; see ``LoadFilter``.
    """
    late_steps = (LimitResources((("NPROC", max_processes),)),) if threads else ()
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
                    ("NPROC", max(max_processes, 1) + threads if threads else max_processes),
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
        filter_step=LoadFilter(policy_name, bpf, recorder, all_threads=True),
        late_steps=late_steps,
    )
