# SPDX-License-Identifier: BSD-3-Clause
"""The registers of one queue, and the check of what a device announces of itself."""

from __future__ import annotations

from devices.virtio.transport.interrupts import VIRTIO_MSI_NO_VECTOR
from sys_util.errors import ProtocolError
from sys_util.typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from devices.virtio.backend import VirtioBackend

# PCI device ids 0x1041 to 0x107F are virtio's (§4.1.2.1).
MAX_DEVICE_TYPE: Final = 0x3F
# One MSI-X vector each and one for configuration changes.
MAX_QUEUES: Final = 64
MAX_QUEUE_SIZE: Final = 1 << 15

_ADDRESS_LIMIT: Final = 1 << 64


def check_backend(backend: VirtioBackend) -> None:
    """Check what a device process, which is not trusted, announces of its device.

    Raises:
        ProtocolError: device type, number of queues or a queue size are impossible.
    """
    if not 0 < backend.device_type <= MAX_DEVICE_TYPE:
        raise ProtocolError(f"{backend.name}: no virtio device has type {backend.device_type}")
    count = len(backend.queue_sizes)
    if count > MAX_QUEUES:
        raise ProtocolError(f"{backend.name}: {count} queues, at most {MAX_QUEUES}")
    for size in backend.queue_sizes:
        if not 0 < size <= MAX_QUEUE_SIZE or size & (size - 1):
            raise ProtocolError(
                f"{backend.name}: queue size {size} is not a power of two in 1..{MAX_QUEUE_SIZE}"
            )


class QueueState:
    """What the driver wrote about one queue (§4.1.4.3)."""

    __slots__ = (
        "addresses",
        "enabled",
        "index",
        "max_size",
        "resetting",
        "size",
        "uses_intx",
        "vector",
        "was_reset",
    )

    def __init__(self, index: int, max_size: int) -> None:
        self.index = index
        self.max_size = max_size
        self.clear()

    def clear(self) -> None:
        """Return to the state in which the device starts."""
        self.size = self.max_size
        self.addresses = [0, 0, 0]  # descriptor table, available ring, used ring
        self.vector = VIRTIO_MSI_NO_VECTOR
        self.enabled = False
        self.resetting = False
        self.was_reset = False
        self.uses_intx = False

    def fault(self) -> str:
        """Return why no device could serve this queue, or an empty string (§2.7)."""
        parts = (
            ("descriptor table", 16, 16 * self.size),
            ("available ring", 2, 6 + 2 * self.size),
            ("used ring", 4, 6 + 8 * self.size),
        )
        for address, (part, alignment, length) in zip(self.addresses, parts, strict=True):
            if address % alignment:
                return f"{part} at {address:#x} is not aligned to {alignment} bytes"
            if address + length > _ADDRESS_LIMIT:
                return f"{part} at {address:#x} of {length:#x} bytes passes the end of memory"
        return ""
