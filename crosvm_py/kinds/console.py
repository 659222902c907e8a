# SPDX-License-Identifier: BSD-3-Clause
"""The virtio console: one device for all virtio ports; ``crosvm_py/console`` opens their ends."""

from __future__ import annotations

from crosvm_py.kinds.kind import DeviceKind
from crosvm_py.kinds.order import DeviceOrder, pack_spec, unpack_spec
from sys_util.typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Sequence

    from crosvm_py.console.virtio_console import VirtioConsole
    from devices.virtio.device import VirtioDevice

# Output files may grow as long as the host's disk has room.
_MAX_FILE_BYTES: Final = 1 << 62


def open_console(console: VirtioConsole) -> DeviceOrder:
    """Return the order for the device process; the caller owns the descriptors in it."""
    spec, fds = console.hand_over()
    return DeviceOrder(CONSOLE.name, CONSOLE.name, pack_spec(spec), fds, _MAX_FILE_BYTES)


def _build(spec: bytes, fds: Sequence[int]) -> VirtioDevice:
    from devices.virtio.console.device import Console, ConsoleSpec

    return Console(unpack_spec(ConsoleSpec, spec), fds)


CONSOLE: Final = DeviceKind(
    "console",
    "console_device",
    "devices.virtio.console.device",
    _build,
    counters=("dropped_bytes",),
    output_offset=8,  # emerg_wr (virtio 1.3 §5.3.4)
)
