# SPDX-License-Identifier: BSD-3-Clause
"""The process of a device or a broker, from its clone to the start of its own work.

Both the warden and a mould clone processes by the functions here. A new process first waits for a
byte from the warden, which sends it when the ids of the process are mapped.
"""

from __future__ import annotations

import os
from functools import partial

from crosvm_py.device_process.process import run_device
from crosvm_py.exit_status import EXIT_BUG
from crosvm_py.kinds.jail import jail_for
from crosvm_py.kinds.table import DEVICE_KINDS
from jail.namespaces import write_id_maps
from jail.plan import device_jail
from jail.steps import DieWithParent
from sys_util import linux, signal, socket
from sys_util.child_log import CALL_DENIED_HEAD
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
    """What a process runs, its jail, and how it reports a denied system call.

    ``denied_head`` is the beginning of that report, which goes to the first of its descriptors.
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
    """Return the role of a device's process.

    Args:
        order: describes the device; ``max_file_bytes`` is up to date.
        fds: the channel to the vmm, guest memory, the page of counters, the device's own.
        policies: the filters of the run by name; ``None`` for ``--disable-sandbox``.
        inside: user and group of the process inside its user namespace.
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
    """Return the role of a broker's process.

    ``fds`` are the channel to the device and the directory of the sockets. The other arguments are
    as for ``device_role``.
    """
    from sys_util.modules import load_module

    module = load_module(kind.module)
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
    """Run as the cloned child: wait for the byte, then run the role and exit.

    Args:
        role: what to run.
        fds: the descriptors of the process, the channel first.
        go_fd: the pipe that the byte comes through; exit if it ends without one.
        null_fd: /dev/null, which is copied to the standard descriptors.
    """
    status = EXIT_BUG
    try:
        # Until now a denied call would be reported on the parent's channel.
        linux.report_denied_calls(fds[0], role.denied_head)
        for fd in _STDIO:
            os.dup2(null_fd, fd)
        if os.read(go_fd, 1):  # no byte: the warden has died or given up
            if role.jail is None:
                linux.close_all_fds_except({*_STDIO, *fds})
                DieWithParent().apply()
            status = role.run(socket.socket(fileno=fds[0]), fds[1:], role.jail)
    finally:
        os._exit(status)


def let_go(pid: int, go_fd: int, ids: IdMap | None) -> int:
    """Map the ids of a waiting child, send it the byte, and return a pidfd of it.

    Args:
        pid: the child; it is killed and reaped on failure.
        go_fd: the pipe on which it waits for the byte; the caller keeps it.
        ids: its ids on the host; ``None`` if it has no user namespace of its own.

    Raises:
        HostError, OSError: the host refuses it; the child is gone.
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
