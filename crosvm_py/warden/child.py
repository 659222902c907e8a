# SPDX-License-Identifier: BSD-3-Clause
"""A process of a device or its broker, from its clone to the life that it is made for.

Whoever clones it, the warden itself or a mould, does so by the functions here. The process waits
for a byte before it does anything: by then its ids are mapped.
"""

from __future__ import annotations

import os
import signal
import socket
from functools import partial

from crosvm_py.device_process.process import run_device
from crosvm_py.device_process.protocol import CALL_DENIED_HEAD
from crosvm_py.exit_status import EXIT_BUG
from crosvm_py.kinds.jail import jail_for
from crosvm_py.kinds.table import DEVICE_KINDS
from jail.namespaces import write_id_maps
from jail.plan import device_jail
from jail.steps import DieWithParent
from sys_util import linux
from sys_util.errors import HostError
from sys_util.typing import TYPE_CHECKING, Final, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from typing import NoReturn

    from crosvm_py.kinds.kind import BrokerKind
    from crosvm_py.warden.protocol import Spawn
    from jail.ids import IdMap
    from jail.plan import JailPlan
    from seccomp import Policy

    Policies = Mapping[str, Policy]
    InsideIds = tuple[int | None, int | None]


_STDIO: Final = frozenset({0, 1, 2})


class Role(NamedTuple):
    """What a process is to be: its life, its jail, and how it tells of a denied call.

    ``denied_head`` is what that report begins with, on the first of the process's descriptors.
    """

    run: Callable[[socket.socket, list[int], JailPlan | None], int]
    jail: JailPlan | None
    denied_head: bytes


def guest_bytes(order: Spawn) -> int:
    """Return the size of guest memory."""
    return sum(region.size_bytes for region in order.regions)


def device_role(
    order: Spawn, fds: Sequence[int], policies: Policies | None, inside: InsideIds
) -> Role:
    """Return what the process of a device is to be.

    Args:
        order: describes the device; ``max_file_bytes`` is the present one.
        fds: the channel to the vmm, guest memory, the page of counters, the device's own.
        policies: the filters of the run by name; ``None`` for ``--disable-sandbox``.
        inside: user and group that it becomes.
    """
    kind = DEVICE_KINDS[order.kind]
    jail = None
    if policies is not None:
        jail = jail_for(
            kind,
            policies[kind.policy_name],
            keep_fds=_STDIO.union(fds),
            max_file_bytes=order.max_file_bytes,
            guest_bytes=guest_bytes(order),
            ids=inside,
        )
    return Role(partial(run_device, order), jail, CALL_DENIED_HEAD)


def broker_role(
    order: Spawn,
    kind: BrokerKind,
    fds: Sequence[int],
    policies: Policies | None,
    inside: InsideIds,
) -> Role:
    """Return what the broker of a device is to be.

    ``fds`` are the channel to the device and the directory of the sockets; the others are those of
    ``device_role``.
    """
    from importlib import import_module

    module = import_module(kind.module)
    jail = None
    if policies is not None:
        policy = policies[kind.policy_name]
        jail = device_jail(
            policy_name=policy.name,
            bpf=policy.bpf,
            keep_fds=_STDIO.union(fds),
            max_file_bytes=0,
            ids=inside,
            root_fd=fds[1],
            recorder=policy.recorder,
            memory_bytes=0,
        )
    return Role(partial(module.run_broker, order.connects.name), jail, module.BROKER_DENIED_HEAD)


def be_child(role: Role, fds: list[int], go_fd: int, null_fd: int) -> NoReturn:
    """Be the process, in the child that was cloned: wait for the byte, then live.

    Args:
        role: what to be.
        fds: its descriptors, the channel first.
        go_fd: where the byte comes; the end of it means that there is nothing to live for.
        null_fd: /dev/null, which the standard descriptors become.
    """
    status = EXIT_BUG
    try:
        linux.report_denied_calls(fds[0], role.denied_head)  # the parent's channel is not ours
        for fd in _STDIO:
            os.dup2(null_fd, fd)
        if os.read(go_fd, 1):  # nothing: the warden died or gave up
            if role.jail is None:
                linux.close_all_fds_except({*_STDIO, *fds})
                DieWithParent().apply()
            status = role.run(socket.socket(fileno=fds[0]), fds[1:], role.jail)
    finally:
        os._exit(status)


def let_go(pid: int, go_fd: int, ids: IdMap | None) -> int:
    """Map the ids of a child that waits, let it go, and return a pidfd of it.

    Args:
        pid: the child's, which is killed and reaped on failure.
        go_fd: where it waits for the byte; stays the caller's.
        ids: what the host knows it as; ``None`` where it is in no namespaces of its own.

    Raises:
        HostError, OSError: the host does not let us; there is no process.
    """
    try:
        if ids is not None:
            write_id_maps(pid, ids)
        pidfd = os.pidfd_open(pid)
    except (HostError, OSError):
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        raise
    os.write(go_fd, b"!")
    return pidfd
