# SPDX-License-Identifier: BSD-3-Clause
"""A mould: a fresh interpreter that makes one process of a device, or of a broker, and ends.

The forge executes it (``BOOT`` there). So its address layout, stack canary and hash seed are its
own, and its code is what is installed now. It imports the modules that devices need, loads the
warden's filter, as the first devices inherited it, and waits for its order. It reads nothing from a
guest. The process that it clones is a child of the warden.
"""

from __future__ import annotations

import gc
import mmap
import os
import select

from crosvm_py.exit_status import EXIT_HOST
from crosvm_py.kinds.table import DEVICE_KINDS
from crosvm_py.warden import protocol
from crosvm_py.warden.child import be_child, broker_role, device_role
from crosvm_py.warden.forge import MouldFds
from crosvm_py.warden.forge_protocol import (
    CALL_DENIED_HEAD,
    MAX_REASON_CHARS,
    MOULD_CODEC,
    STORED_POLICIES,
    Born,
    Cast,
    Failed,
    Load,
    Loaded,
)
from jail.namespaces import clone_into
from jail.plan import load_filter
from seccomp import Policy
from sys_util import linux, socket
from sys_util.channel import Channel
from sys_util.crash import name_and_words
from sys_util.errors import ChannelClosed, ProtocolError, VmmError, describe
from sys_util.stranger import unpack
from sys_util.typing import TYPE_CHECKING, cast

if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import NoReturn

    from crosvm_py.warden.child import Role
    from crosvm_py.warden.forge_protocol import StoredPolicy


def be_mould(fds_word: str, kinds_word: str) -> NoReturn:
    """Run as a mould, then exit.

    ``fds_word`` lists its descriptors (``MouldFds``), ``kinds_word`` the kinds of device to import.
    """
    fds = MouldFds.read(fds_word)
    channel = Channel(socket.socket(fileno=fds.channel), MOULD_CODEC)
    status = EXIT_HOST
    try:
        _serve(channel, fds, kinds_word.split(","))
        status = 0
    except ChannelClosed:
        status = 0  # the warden does not need it any more
    except Exception as error:  # noqa: BLE001 - process entry: imported code may raise anything
        reason = describe(error) if isinstance(error, VmmError) else name_and_words(error)
        _tell(channel, reason)
    finally:
        os._exit(status)


def _tell(channel: Channel, reason: str) -> None:
    try:
        channel.send(Failed(reason[:MAX_REASON_CHARS]))
    except (ChannelClosed, ProtocolError):
        return


def _serve(channel: Channel, fds: MouldFds, kinds: list[str]) -> None:
    linux.set_process_name("crosvm-mould")
    added, _ = _next(channel)
    if not isinstance(added, Load):
        raise ProtocolError(f"unexpected {type(added).__name__}")
    for kind in {*kinds, *added.kinds} - {""}:
        DEVICE_KINDS[kind].preload()
    policies = None
    if fds.policies >= 0:
        warden, policies = _load_policies(fds.policies, fds.recorder)
        linux.report_denied_calls(fds.channel, CALL_DENIED_HEAD)
        load_filter(warden)
    gc.freeze()
    gc.enable()
    channel.send(Loaded())
    message, passed = _next(channel)
    if not isinstance(message, Cast):
        raise ProtocolError(f"unexpected {type(message).__name__}")
    _cast(channel, message, passed, policies, fds.null)


def _load_policies(fd: int, recorder: int) -> tuple[Policy, Mapping[str, Policy]]:
    """Return the warden's filter, and the filters of devices and brokers by name."""
    with mmap.mmap(fd, 0, mmap.MAP_PRIVATE, mmap.PROT_READ) as packed:
        stored = cast("tuple[StoredPolicy, ...]", STORED_POLICIES(unpack(packed[:])))
    found = [
        Policy(policy.name, "", policy.bpf, recorder=recorder if policy.is_recorded else None)
        for policy in stored
    ]
    return found[0], {policy.name: policy for policy in found[1:]}


def _next(channel: Channel) -> tuple[object, list[int]]:
    poll = select.poll()
    poll.register(channel.fileno(), select.POLLIN)
    while True:
        poll.poll()
        received = channel.receive()
        if received is not None:
            return received


def _cast(
    channel: Channel,
    what: Cast,
    passed: list[int],
    policies: Mapping[str, Policy] | None,
    null_fd: int,
) -> None:
    """Clone the process that is ordered, and tell the warden its pid."""
    order = protocol.WARDEN_CODEC.decode(what.order)
    go_fd, *fds = passed
    cgroup_fd = fds.pop(0) if what.in_cgroup else -1
    if not isinstance(order, protocol.Spawn):
        raise ProtocolError(f"{type(order).__name__} is no order")
    role = _role(what, order, fds, policies)
    if policies is None:
        pid = linux.clone(linux.CLONE_PARENT)
    else:
        pid = clone_into(cgroup_fd, sibling=True)
    if pid == 0:
        be_child(role, fds, go_fd, null_fd)
    channel.send(Born(pid))


def _role(
    what: Cast, order: protocol.Spawn, fds: list[int], policies: Mapping[str, Policy] | None
) -> Role:
    inside = (what.uid, what.gid)
    if not what.as_broker:
        return device_role(order, fds, policies, inside)
    broker = DEVICE_KINDS[order.kind].broker
    if broker is None:
        raise ProtocolError(f"{order.name} has no broker")
    return broker_role(order, broker, fds, policies, inside)
