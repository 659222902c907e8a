# SPDX-License-Identifier: BSD-3-Clause
"""Spare device processes: jailed before anybody knows which device they will be.

A warden that waits for its VM in the pool has some. Each is a child of that warden, alone in its
namespaces, with an empty root and no descriptor but its channel. Its first message is the order for
a device, from the warden; then the channel becomes the one between the device and the vmm.
"""

from __future__ import annotations

import os
import select
from functools import partial

from crosvm_py.device_process.process import run_device
from crosvm_py.warden import protocol
from crosvm_py.warden.child import Role, device_role
from crosvm_py.warden.forge_protocol import Cast
from jail.plan import device_jail
from jail.spare import limits_of, without_limits
from sys_util import linux, signal
from sys_util.channel import Channel
from sys_util.child_log import CALL_DENIED_HEAD
from sys_util.errors import ChannelClosed, ProtocolError
from sys_util.typing import TYPE_CHECKING, Final, NamedTuple
from sys_util.wire import Codec, encode

if TYPE_CHECKING:
    from collections.abc import Sequence

    from crosvm_py.warden.child import InsideIds, Policies
    from jail.plan import JailPlan
    from sys_util import socket

_STDIO: Final = frozenset({0, 1, 2})
_ORDER_CODEC: Final = Codec((Cast,))


class SpareDevice(NamedTuple):
    """The warden's handle on a spare process. The warden owns both descriptors."""

    pid: int
    pidfd: int
    sock: socket.socket

    def order(self, order: protocol.Spawn, inside: InsideIds, fds: Sequence[int]) -> None:
        """Have the process be this device.

        Raises:
            ChannelClosed, ProtocolError: it has ended, or cannot be told.
        """
        cast = Cast(encode(order), False, False, *inside)
        Channel(self.sock, _ORDER_CODEC).send(cast, fds)

    def kill(self) -> None:
        """End the process, which has no device; the caller reaps it and closes ``pidfd``."""
        self.sock.close()
        linux.pidfd_send_signal(self.pidfd, signal.SIGKILL)

    def end(self) -> None:
        """End and reap the process."""
        self.kill()
        os.waitpid(self.pid, 0)
        os.close(self.pidfd)


def spare_role(filters: Policies, inside: InsideIds, fd: int) -> Role:
    """Return the role of a spare process whose channel is ``fd``; its filter depends on its order.

    ``filters`` are those of all devices that it can become.
    """
    jail = device_jail(
        policy_name="", bpf=b"", keep_fds=_STDIO | {fd}, max_file_bytes=0, ids=inside
    )
    return Role(partial(_run_spare, filters), without_limits(jail), CALL_DENIED_HEAD)


def _run_spare(
    filters: Policies, sock: socket.socket, _fds: Sequence[int], jail: JailPlan | None
) -> int:
    """Enter the jail, wait for the order and be that device; return the exit status."""
    linux.set_process_name("crosvm-spare")
    if jail is not None:
        jail.enter()
    try:
        cast, fds = _next(Channel(sock, _ORDER_CODEC))
    except ChannelClosed:
        return 0  # no VM needs it
    order = protocol.WARDEN_CODEC.decode(cast.order)
    if not isinstance(order, protocol.Spawn):
        raise ProtocolError(f"{type(order).__name__} is no order")
    role = device_role(order, [sock.fileno(), *fds], filters, (cast.uid, cast.gid))
    return run_device(order, sock, fds, None if role.jail is None else limits_of(role.jail))


def _next(channel: Channel) -> tuple[Cast, list[int]]:
    poll = select.poll()
    poll.register(channel.fileno(), select.POLLIN)
    while True:
        poll.poll()
        received = channel.receive()
        if received is not None and isinstance(received[0], Cast):
            return received[0], received[1]
