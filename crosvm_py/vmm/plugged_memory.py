# SPDX-License-Identifier: BSD-3-Clause
"""Connect the memory that a guest plugs and unplugs with the device of virtio-mem."""

from __future__ import annotations

from crosvm_py.kinds.mem import MEM
from devices.virtio.commands import Refused, SetRequested
from sys_util.log import get_logger
from sys_util.typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

    from crosvm_py.machine.board import Board
    from crosvm_py.vmm.device_proxy import DeviceProcess
    from sys_util.wire import Message

log = get_logger("crosvm.memory")


def connect(machine: Board, devices: Iterable[DeviceProcess], requested_bytes: int) -> None:
    """Let the device of virtio-mem, which is there, ask for memory of the machine.

    A new process of it is told again how much the guest is to have: what its predecessor saved is
    not believed.
    """
    memory = machine.add_plugged_memory(requested_bytes)
    device = next(device for device in devices if device.kind is MEM)
    device.on_blocks = memory.change

    def told(answer: Message) -> None:
        if isinstance(answer, Refused) and not device.status.dead:
            log.info("%s: is told later how much memory the guest is to have", device.name)

    def tell(size_bytes: int) -> None:
        device.command(SetRequested(size_bytes), told)

    def tell_the_next() -> None:
        if not device.status.dead:
            tell(memory.requested_bytes)
            device.when_served_again(tell_the_next)

    memory.tell = tell
    device.when_served_again(tell_the_next)
