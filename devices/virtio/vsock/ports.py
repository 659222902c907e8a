# SPDX-License-Identifier: BSD-3-Clause
"""The host's ports for connections that host processes begin.

A restarted device process must not use a port to which the guest may still have an old connection.
So each process takes blocks of ports that no earlier process had.
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
    """The source of ports; ``saved`` has the block that comes next, for a restarted process too."""

    def __init__(self, saved: SavedState) -> None:
        self._saved = saved
        self._next = 0
        self._take_block()

    def take(self) -> int:
        """Return the next port; ports repeat only after all others were used."""
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
