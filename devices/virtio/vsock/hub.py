# SPDX-License-Identifier: BSD-3-Clause
"""The interface between a vsock connection and the table of connections."""

from __future__ import annotations

from sys_util.enum import Enum
from sys_util.typing import TYPE_CHECKING, Final, Protocol

if TYPE_CHECKING:
    from devices.virtio.vsock.connection import Connection
    from devices.virtio.vsock.outbox import MessagePool

# For Hub.watch(): no event at all, not even a hang-up, which epoll otherwise always reports.
WATCH_NOTHING: Final = -1


class State(Enum):
    """The state of a connection, in words for messages."""

    REQUESTED = "not yet open"
    ESTABLISHED = "open"
    CLOSING = "closing"  # both sides were shut down; a reset of the guest has to come
    DEAD = "dead"  # the guest has to get a reset
    DRAINING = "closed"  # the guest has closed it; the host still gets the rest of the data
    GONE = "gone"


class Hub(Protocol):
    """What a connection needs of its device."""

    guest_cid: int
    messages: MessagePool
    scratch: memoryview  # for one call: room for the longest message

    def announce(self, connection: Connection) -> None:
        """Note that the connection has a packet for the guest."""
        ...

    def watch(self, connection: Connection, events: int) -> None:
        """Wait for other events of the host's socket."""
        ...

    def start_deadline(self, connection: Connection) -> None:
        """Call ``on_deadline`` when the guest's time to answer is over."""
        ...

    def free_ports(self, connection: Connection) -> None:
        """Let the ports be used again, while the connection delivers the rest of its data."""
        ...

    def forget(self, connection: Connection) -> None:
        """Close the host's socket and drop the connection."""
        ...
