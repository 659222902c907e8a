# SPDX-License-Identifier: BSD-3-Clause
"""The host's ports for the connections that host processes begin, one after the other.

The next process of the device must not use a port again to which the guest may still have an old
connection. So each process takes blocks of ports that none had before it.
"""

from __future__ import annotations

from sys_util.errors import ProtocolError
from sys_util.stranger import brief
from sys_util.typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from devices.virtio.saved_state import SavedState

# As in Firecracker.
FIRST_LOCAL_PORT: Final = 1 << 30
LOCAL_PORTS: Final = 1 << 30

PORT_BLOCK: Final = 1 << 12


class LocalPorts:
    """Where the next port comes from; ``saved`` knows the block of the next process."""

    def __init__(self, saved: SavedState) -> None:
        self._saved = saved
        self._next = 0
        self._take_block()

    def take(self) -> int:
        """Return a port that was not used for as long as there were others."""
        port = FIRST_LOCAL_PORT + self._next
        self._next += 1
        if not self._next % PORT_BLOCK:
            self._take_block()
        return port

    def _take_block(self) -> None:
        self._next = 0
        self._saved.restore(self._restore)
        self._saved.store({"next_port": (self._next + PORT_BLOCK) % LOCAL_PORTS})

    def _restore(self, fields: dict[str, object]) -> None:
        first = fields.get("next_port")
        if type(first) is not int or not 0 <= first < LOCAL_PORTS or first % PORT_BLOCK:
            raise ProtocolError(f"next port: {brief(first)}")
        self._next = first
