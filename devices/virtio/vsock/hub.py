# SPDX-License-Identifier: BSD-3-Clause
"""What a vsock connection and the table it stands in have to know of each other."""

from __future__ import annotations

from enum import Enum

from sys_util.typing import TYPE_CHECKING, Final, Protocol

if TYPE_CHECKING:
    from devices.virtio.vsock.connection import Connection
    from devices.virtio.vsock.outbox import MessagePool

# For Hub.watch(): no event at all, not even the end of the other side, which epoll always tells.
WATCH_NOTHING: Final = -1


class State(Enum):
    """Where a connection stands, in words for messages."""

    REQUESTED = "not yet open"
    ESTABLISHED = "open"
    CLOSING = "closing"  # both sides were shut down; the guest's reset is awaited
    DEAD = "dead"  # the guest is owed a reset
    DRAINING = "closed"  # the guest has forgotten it; the host still gets the rest
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
        """Call ``on_deadline`` when the guest has had its time."""
        ...

    def free_ports(self, connection: Connection) -> None:
        """Let the ports be used again; the connection lives on to drain."""
        ...

    def forget(self, connection: Connection) -> None:
        """Close the host's socket and let go of the connection."""
        ...
