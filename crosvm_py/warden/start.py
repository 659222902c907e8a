# SPDX-License-Identifier: BSD-3-Clause
"""How a warden starts: it gives up rights, imports, starts its forge and loads its filter."""

from __future__ import annotations

import contextlib
import gc
import os

from crosvm_py import bundle
from crosvm_py.kinds.table import DEVICE_KINDS
from crosvm_py.warden import protocol
from crosvm_py.warden.forge import start_forge
from crosvm_py.warden.forge_proxy import reason_for
from crosvm_py.warden.warden import Warden
from jail.plan import confine_warden, load_filter
from seccomp import syscall_name
from sys_util import linux
from sys_util.channel import Channel
from sys_util.errors import ChannelClosed, ProtocolError, VmmError
from sys_util.typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

    from crosvm_py.kinds.policies import RunPolicies
    from jail.cgroup import VmCgroup
    from sys_util import socket


def be_warden(
    sock: socket.socket,
    null_fd: int,
    policies: RunPolicies | None,
    kinds: Iterable[str],
    cgroup: VmCgroup | None = None,
    orders: socket.socket | None = None,
) -> None:
    """Run as the warden until the vmm closes the other end of ``sock``.

    Args:
        sock: the channel to the vmm.
        null_fd: /dev/null, for the devices.
        policies: the compiled policies of the run; ``None`` for ``--disable-sandbox``.
        kinds: the kinds of device in this VM; their modules are imported first.
        cgroup: the group of the VM, in which devices get groups of their own.
        orders: the channel from the opener, if devices can be added while the guest runs.
    """
    warden = confined_warden(sock, null_fd, policies, kinds, cgroup, orders)
    if warden is not None:
        warden.run()


def confined_warden(
    sock: socket.socket,
    null_fd: int,
    policies: RunPolicies | None,
    kinds: Iterable[str],
    cgroup: VmCgroup | None = None,
    orders: socket.socket | None = None,
) -> Warden | None:
    """Become the warden that ``be_warden`` runs; ``None`` if the vmm was told why it cannot be."""
    os.setsid()
    linux.set_process_name("crosvm-warden")
    kinds = sorted(kinds)
    channel = Channel(sock, protocol.WARDEN_CODEC)
    try:
        if policies is not None:
            confine_warden()
        for kind in kinds:
            DEVICE_KINDS[kind].preload()
        syscall_name(0)  # loads the names now: under the filter no file can be opened
        bundle.drop()
        gc.freeze()
        gc.enable()
        forge = start_forge(policies, kinds, null_fd)  # after the imports, to share their pages
        warden = Warden(channel, forge, policies, null_fd, cgroup, kinds)
        if orders is not None:
            warden.take_orders(orders)
        if policies is not None:
            linux.report_denied_calls(sock.fileno(), protocol.WARDEN_DENIED_HEAD)
            load_filter(policies.warden)
    except (VmmError, OSError) as error:
        with contextlib.suppress(ChannelClosed, ProtocolError):  # the vmm may have ended already
            channel.send(protocol.CannotStart(reason_for(error)))
        return None
    return warden
