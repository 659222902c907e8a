# SPDX-License-Identifier: BSD-3-Clause
"""The resizes of disks that are under way: which disks are reserved, and who waits for the warden.

The warden resizes the file that a device writes; the device itself is told by the operation.
"""

from __future__ import annotations

from crosvm_py.warden import protocol
from sys_util.errors import ConfigError, ProtocolError
from sys_util.typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Callable

    from crosvm_py.vmm.device_proxy import DeviceProcess
    from crosvm_py.vmm.supervised import SupervisedDevice
    from sys_util.wire import Message

# Called with the file's new size in bytes and "", or with its old size and why it kept that.
ResizeResult: TypeAlias = "Callable[[int, str], None]"


class Resizing:
    """Every resize of one VM. Lives in the event loop's thread."""

    def __init__(self, order: Callable[[Message], None]) -> None:
        """``order`` sends a message to the warden; it raises a ``VmmError`` if that has ended."""
        self._order = order
        self._reserved: set[int] = set()  # device ids between ``begin`` and ``end``
        self._waiting: dict[int, ResizeResult] = {}  # by device id; the warden's answer is missing

    def begin(self, supervised: SupervisedDevice) -> None:
        """Reserve the disk for one resize until ``end``.

        Raises:
            ConfigError: another resize of this disk is under way.
        """
        device = supervised.device
        if device.device_id in self._reserved:
            raise ConfigError(f"{device.name}: another resize is under way")
        self._reserved.add(device.device_id)

    def end(self, device: DeviceProcess) -> None:
        """Release the disk: the resize has succeeded or failed."""
        self._reserved.discard(device.device_id)

    def resize(
        self, supervised: SupervisedDevice | None, size_bytes: int, then: ResizeResult
    ) -> None:
        """Have the warden resize the file; ``then`` gets its answer.

        Raises:
            ConfigError: the device writes no file, or was removed (``None``).
            VmmError: the warden has ended.
        """
        if supervised is None or supervised.is_removed:
            raise ConfigError("it was removed")
        if not supervised.resizable:
            raise ConfigError("it writes no file that could be resized")
        device_id = supervised.device.device_id
        self._order(protocol.Resize(device_id, size_bytes))
        self._waiting[device_id] = then

    def take(self, answer: protocol.Resized) -> None:
        """Take the warden's answer.

        Raises:
            ProtocolError: nothing was asked.
        """
        then = self._waiting.pop(answer.device_id, None)
        if then is None:
            raise ProtocolError(f"device {answer.device_id} was not to be resized")
        then(answer.size_bytes, answer.reason)
