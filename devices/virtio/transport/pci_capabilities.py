# SPDX-License-Identifier: BSD-3-Clause
"""The layout of the BAR, and the capabilities that describe it (virtio 1.3 §4.1.4)."""

from __future__ import annotations

from devices.bus import all_ones
from devices.pci.config_space import PCI_CAP_ID_VNDR
from devices.virtio.transport.common_config import COMMON_CONFIG_BYTES
from devices.virtio.transport.device_config import MAX_CONFIG_BYTES
from devices.virtio.transport.notify import NOTIFY_OFF_MULTIPLIER
from sys_util.typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from devices.bus import BusDevice
    from devices.pci.config_space import ConfigSpace

VIRTIO_BAR: Final = 0
REGION_BYTES: Final = 0x1000
COMMON_OFFSET: Final = 0x0000
ISR_OFFSET: Final = 0x1000
DEVICE_OFFSET: Final = 0x2000
NOTIFY_OFFSET: Final = 0x3000
MSIX_TABLE_OFFSET: Final = 0x4000
MSIX_PBA_OFFSET: Final = 0x5000
BAR_BYTES: Final = 0x8000

VIRTIO_PCI_CAP_COMMON_CFG: Final = 1
VIRTIO_PCI_CAP_NOTIFY_CFG: Final = 2
VIRTIO_PCI_CAP_ISR_CFG: Final = 3
VIRTIO_PCI_CAP_DEVICE_CFG: Final = 4
VIRTIO_PCI_CAP_PCI_CFG: Final = 5

# Offsets in struct virtio_pci_cap.
CAP_BAR: Final = 4
CAP_OFFSET: Final = 8
CAP_LENGTH: Final = 12
CAP_EXTRA: Final = 16

_CAP_BYTES: Final = 16


def add_virtio_capabilities(space: ConfigSpace, queue_count: int) -> None:
    """Describe the four structures in the BAR to the driver."""
    notify_bytes = NOTIFY_OFF_MULTIPLIER * queue_count
    multiplier = NOTIFY_OFF_MULTIPLIER.to_bytes(4, "little")
    _add(space, VIRTIO_PCI_CAP_COMMON_CFG, COMMON_OFFSET, COMMON_CONFIG_BYTES)
    _add(space, VIRTIO_PCI_CAP_ISR_CFG, ISR_OFFSET, 1)
    _add(space, VIRTIO_PCI_CAP_DEVICE_CFG, DEVICE_OFFSET, MAX_CONFIG_BYTES)
    _add(space, VIRTIO_PCI_CAP_NOTIFY_CFG, NOTIFY_OFFSET, notify_bytes, multiplier)


def _add(
    space: ConfigSpace,
    cfg_type: int,
    offset: int,
    length: int,
    extra: bytes = b"",
    writable: bytes = b"",
) -> int:
    body = bytes([_CAP_BYTES + len(extra), cfg_type, VIRTIO_BAR, 0, 0, 0])
    body += offset.to_bytes(4, "little") + length.to_bytes(4, "little") + extra
    return space.add_capability(PCI_CAP_ID_VNDR, body, writable)


class PciConfigWindow:
    """The BAR seen through configuration space (VIRTIO_PCI_CAP_PCI_CFG, §4.1.4.9)."""

    def __init__(self, space: ConfigSpace, bar: BusDevice) -> None:
        # From byte 2 of the capability: cap_len, cfg_type, bar, id, padding, offset, length, data.
        writable = b"\0\0\xff\0\0\0" + b"\xff" * 12
        at = _add(space, VIRTIO_PCI_CAP_PCI_CFG, 0, 0, bytes(4), writable)
        self._space = space
        self._device = bar
        self._at = at
        space.on_read(at + CAP_EXTRA, 4, self._read)
        space.on_write(at + CAP_EXTRA, 4, self._write)

    def _read(self) -> None:
        offset, size = self._target()
        value = self._device.read(offset, size) if size else all_ones(4)
        self._space.set(self._at + CAP_EXTRA, 4, value)

    def _write(self) -> None:
        offset, size = self._target()
        if size:
            value = self._space.get(self._at + CAP_EXTRA, size)
            self._device.write(offset, size, value)

    def _target(self) -> tuple[int, int]:
        """Return offset and size of the access that the driver set up; size 0 if it is invalid."""
        offset = self._space.get(self._at + CAP_OFFSET, 4)
        size = self._space.get(self._at + CAP_LENGTH, 4)
        valid = (
            self._space.get(self._at + CAP_BAR, 1) == VIRTIO_BAR
            and size in (1, 2, 4)
            and offset % size == 0
            and offset + size <= BAR_BYTES
        )
        return (offset, size) if valid else (0, 0)
