# SPDX-License-Identifier: BSD-3-Clause
"""A spare warden: it waits in the pool, with spare devices, until a run adopts it.

It has done all that a warden does before its first order, and knows nothing of any client or guest.
"""

from __future__ import annotations

import os
import select

from crosvm_py.log import Syslog
from crosvm_py.pool.spare_protocol import SPARE_CODEC, Adopt, Waiting
from crosvm_py.socket_path import unlink_if_ours
from crosvm_py.warden.start import confined_warden
from jail.plan import load_filter
from sys_util import log, socket
from sys_util.channel import Channel
from sys_util.errors import ChannelClosed, ProtocolError, VmmError
from sys_util.typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from crosvm_py.kinds.policies import RunPolicies
    from seccomp import Policy

# What most VMs have: a source of randomness, and a disk. Others are made when they are ordered.
SPARE_DEVICES: Final = 2

_STDERR: Final = 2


def be_spare_warden(
    sock: socket.socket, null_fd: int, policies: RunPolicies, tighter: Policy
) -> None:
    """Wait to be adopted, and run as the warden then; return at the end of monitor or vmm.

    Args:
        sock: the channel to the monitor, which becomes the vmm.
        null_fd: /dev/null, for the devices.
        policies: every filter that a run may need.
        tighter: what the warden of some runs has instead of ``policies.warden``.
    """
    warden = confined_warden(sock, null_fd, policies, ())
    if warden is None:
        return
    try:
        warden.make_spares(SPARE_DEVICES)
        channel = Channel(sock, SPARE_CODEC)
        channel.send(Waiting())
        adopt, fds = _next(channel)
    except (VmmError, OSError, ChannelClosed):
        warden.end()  # the monitor has ended, or makes a warden of its own
        return
    _become_callers(adopt, fds)
    if adopt.warden == tighter.name:
        load_filter(tighter)
    orders = socket.socket(fileno=fds[1]) if adopt.has_orders else None
    warden.adopt(adopt.kinds, adopt.policies, orders)
    warden.run()
    for path, dev, ino in adopt.sockets:
        unlink_if_ours(os.fsdecode(path), dev, ino)


def _next(channel: Channel) -> tuple[Adopt, list[int]]:
    """Return the message of the run that adopts us.

    Raises:
        ChannelClosed: none does.
        ProtocolError: the message makes no sense.
    """
    poll = select.poll()
    poll.register(channel.fileno(), select.POLLIN)
    while True:
        poll.poll()
        received = channel.receive()
        if received is None:
            continue
        message, fds = received
        if not isinstance(message, Adopt) or len(fds) != message.fds:
            raise ProtocolError(f"{type(message).__name__} with {len(fds)} descriptors")
        return message, fds


def _become_callers(adopt: Adopt, fds: list[int]) -> None:
    """Log as the vmm does: to its stderr and syslog, with its levels."""
    os.dup2(fds[0], _STDERR)
    os.close(fds[0])
    log.STDERR.take_over()
    exceptions = {each.module: each.level for each in adopt.log_exceptions}
    log.set_filter(log.Filter(adopt.log_level, exceptions))
    if adopt.syslog_tag is not None:
        Syslog.to_pipe(adopt.syslog_tag, fds[-1])
