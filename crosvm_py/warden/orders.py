# SPDX-License-Identifier: BSD-3-Clause
"""Orders for devices that are added while the guest runs: the channel that they come through.

The opener sends them, which belongs to the control process. The vmm, which a guest may have taken
over, has no end of this channel. A client may have taken the control process over, so the opener's
word is a stranger's as well: it can add devices, each from descriptors that it sends, and no more.
"""

from __future__ import annotations

import os

from crosvm_py.warden import protocol
from crosvm_py.warden.socket_files import socket_files
from sys_util.channel import Channel
from sys_util.errors import ChannelClosed, ProtocolError, VmmError, describe
from sys_util.log import get_logger
from sys_util.stranger import judged
from sys_util.typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from sys_util import socket
    from sys_util.event_loop import EventLoop

log = get_logger("crosvm.warden").limited()


class Orders:
    """The channel of the orders. Owns it."""

    def __init__(
        self,
        loop: EventLoop,
        sock: socket.socket,
        add: Callable[[protocol.Add, list[int]], None],
    ) -> None:
        """``add`` takes an order, and the descriptors with it, which it owns unless it raises."""
        self._loop = loop
        self._channel = Channel(sock, protocol.ORDERS_CODEC)
        self._add = add

    def open(self) -> None:
        """Take orders from now on."""
        self._loop.add(self._channel.fileno(), lambda _events: self._on_order())

    def _on_order(self) -> None:
        try:
            received = self._channel.receive()
        except ChannelClosed:  # no control process can come any more
            self._loop.remove(self._channel.fileno())
            self._channel.close()
            return
        except ProtocolError as error:
            log.error("the opener sends what is no order: %s", error)
            return
        if received is None:
            return
        order, fds = received
        try:
            judged("its order", self._take, order, fds)
        except VmmError as error:
            for file in socket_files(fds):
                file.remove()
            for fd in fds:
                os.close(fd)
            if isinstance(order, protocol.Add):
                self._refuse(order, describe(error))

    def _take(self, order: object, fds: list[int]) -> None:
        if isinstance(order, protocol.Add):
            self._add(order, fds)

    def _refuse(self, order: protocol.Add, reason: str) -> None:
        try:
            self._channel.send(protocol.NotAdded(order.place, reason[:1024]))
        except (ChannelClosed, ProtocolError) as error:
            log.error("%s: not added: %s (the opener does not hear)", order.name, error)
