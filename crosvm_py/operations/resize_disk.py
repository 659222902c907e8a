# SPDX-License-Identifier: BSD-3-Clause
"""Resize a disk while its guest runs.

Three processes take part. The device refuses requests behind the end of the disk and tells the
driver of the new size. The warden resizes the file, and changes how far the device may write. The
vmm has no descriptor of the file; it asks the other two in the right order, so that the guest never
sees blocks that the file does not have: a disk that shrinks is first cut for the guest, and one
that grows is first extended on the host.

If the device process ends after the file was resized, the resize goes on: the next process is told.
"""

from __future__ import annotations

from crosvm_py.operations.devices import find_device, response
from crosvm_py.operations.operation import operation
from crosvm_py.requests.devices import ResizeDisk, ResizeNamedDisk
from crosvm_py.requests.pending import Pending
from crosvm_py.requests.protocol import MAX_REASON_CHARS, Failed
from devices.virtio.commands import CheckSize, DiskSize, Refused, SetSize
from sys_util.errors import ConfigError, VmmError, describe
from sys_util.log import get_logger
from sys_util.typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from crosvm_py.operations.operation import RunningVm
    from crosvm_py.requests.protocol import Response
    from crosvm_py.vmm.device_proxy import DeviceProcess
    from crosvm_py.vmm.supervisor import Supervisor
    from sys_util.wire import Message

log = get_logger("crosvm.devices")


@operation(ResizeDisk)
def resize_disk(vm: RunningVm, request: ResizeDisk) -> Pending:
    """Begin a resize; the returned ``Pending`` gets ``DiskSize`` or ``Failed``.

    Raises:
        ConfigError: there is no such disk, or it is being resized already.
    """
    return _resize(vm, f"block:{request.index}", request.size_bytes)


@operation(ResizeNamedDisk)
def resize_named_disk(vm: RunningVm, request: ResizeNamedDisk) -> Pending:
    """Begin a resize; the returned ``Pending`` gets ``DiskSize`` or ``Failed``.

    Raises:
        ConfigError: there is no such disk, or it is being resized already.
    """
    return _resize(vm, request.device, request.size_bytes)


def _resize(vm: RunningVm, name: str, size_bytes: int) -> Pending:
    supervisor = vm.supervisor
    device = find_device(supervisor.devices, name)
    if not device.kind.resizable:
        raise ConfigError(f"{device.name}: is no disk")
    supervisor.begin_resize(device)
    resize = _DiskResize(supervisor, device, size_bytes)
    resize.begin()
    return resize.pending


class _DiskResize:
    """One resize, step by step."""

    def __init__(self, supervisor: Supervisor, device: DeviceProcess, size_bytes: int) -> None:
        self.pending = Pending()
        self._supervisor = supervisor
        self._device = device
        self._wanted_bytes = size_bytes
        self._old_bytes = 0  # what the driver was told

    def begin(self) -> None:
        """Ask the device for its present size, and whether it can have the new one."""
        self._device.command(CheckSize(self._wanted_bytes), self._on_checked)

    def _on_checked(self, answer: Message) -> None:
        if not isinstance(answer, DiskSize):
            self._complete(response(self._device, answer))
            return
        self._old_bytes = answer.size_bytes
        if self._wanted_bytes < self._old_bytes:  # cut it for the guest before the file
            self._device.command(SetSize(self._wanted_bytes), self._on_agreed)
        else:
            self._resize_file()

    def _on_agreed(self, answer: Message) -> None:
        if isinstance(answer, Refused):
            self._complete(response(self._device, answer))
        else:
            self._resize_file()

    def _resize_file(self) -> None:
        try:
            self._supervisor.resize(self._device, self._wanted_bytes, self._on_resized)
        except VmmError as error:
            self._on_resized(0, describe(error))

    def _on_resized(self, size_bytes: int, reason: str) -> None:
        if reason:
            # The device may have the new size already, so give it the old one back.
            self._tell(self._old_bytes, lambda: self._fail(reason))
        else:
            if size_bytes < self._old_bytes:
                facts = (self._device.name, self._old_bytes, size_bytes)
                log.warning("%s: cut from %d to %d bytes; what was behind that is lost", *facts)
            answer = DiskSize(size_bytes)
            self._tell(size_bytes, lambda: self._complete(answer))

    def _tell(self, size_bytes: int, then: Callable[[], None]) -> None:
        device = self._device

        def told(answer: Message) -> None:
            if not isinstance(answer, Refused):
                then()
            elif (device.is_open and device.status.ready) or device.status.dead:
                self._complete(response(device, answer))
            else:
                device.when_served_again(lambda: self._tell(size_bytes, then))

        device.command(SetSize(size_bytes, measured=True), told)

    def _fail(self, reason: str) -> None:
        self._complete(Failed(f"{self._device.name}: {reason}"[:MAX_REASON_CHARS]))

    def _complete(self, answer: Response) -> None:
        self._supervisor.end_resize(self._device)
        self.pending.complete(answer)
