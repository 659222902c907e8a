# SPDX-License-Identifier: BSD-3-Clause
"""What every virtio device has to provide."""

from __future__ import annotations

from sys_util.errors import GuestError, VmmError
from sys_util.typing import TYPE_CHECKING, ClassVar, Protocol

if TYPE_CHECKING:
    from devices.virtio.commands import Command
    from devices.virtio.context import DeviceContext
    from devices.virtio.queue.servers import QueueServer, StartedQueue
    from sys_util.wire import Message


class RequestError(GuestError):
    """A well-formed request that the device will not or cannot perform.

    ``status`` is the code that the guest gets, one of those of its type of device.
    """

    def __init__(self, status: int, reason: str) -> None:
        super().__init__(reason)
        self.status = status


class CommandError(VmmError):
    """A command of the user that the device does not carry out; the text is for the user."""


class VirtioDevice(Protocol):
    """The part of a device that is specific to its kind. It runs in its own process.

    These are what its section of the specification says, what its process tells it, and who serves
    each of its queues.
    """

    @property
    def name(self) -> str:
        """The name of the kind, for logs."""
        ...

    @property
    def device_type(self) -> int:
        """The virtio device id (virtio 1.3 §5)."""
        ...

    @property
    def queue_sizes(self) -> tuple[int, ...]:
        """The greatest size of each queue."""
        ...

    @property
    def seccomp_policy(self) -> str:
        """The name of the policy its process runs under."""
        ...

    @property
    def in_order(self) -> bool:
        """Whether every chain is finished before the next one is taken (VIRTIO_F_IN_ORDER)."""
        ...

    @property
    def early_writes(self) -> bool:
        """Whether a driver may write to the configuration before it has negotiated."""
        ...

    def features(self) -> int:
        """Return the device-specific feature bits; the base ones are added for every device."""
        ...

    def config(self) -> bytes:
        """Return the device configuration as it is now."""
        ...

    def write_config(self, offset: int, data: bytes) -> None:
        """Take the driver's write to the device configuration."""
        ...

    def activate(self, features: int) -> None:
        """Learn the negotiated features; the first chain comes after this."""
        ...

    def reset(self) -> None:
        """Forget the driver and everything it negotiated; every queue has stopped."""
        ...

    def make_server(self, queue: StartedQueue) -> QueueServer:
        """Return who serves a queue that the driver has enabled; see ``queue/servers.py``.

        Raises:
            GuestError: nobody can; the device needs a reset.
        """
        ...

    def attach(self, context: DeviceContext) -> None:
        """Take the device's context, once, before the process's filter is loaded.

        What can be made in advance (descriptors, buffers, registrations) is made here.
        """
        ...

    def pause(self) -> None:
        """Finish what is in flight; when this returns, nothing is and no port holds a chain."""
        ...

    def resume(self) -> None:
        """Go on; a kick of every active queue follows."""
        ...

    def command(self, command: Command) -> Message:
        """Do what the user asks for over the control socket and return the answer.

        Raises:
            CommandError: the device does not do it; the text says why.
        """
        ...


class SimpleDevice:
    """Base of a device that has no events and no commands of its own."""

    name: ClassVar[str]
    early_writes: ClassVar[bool] = False

    def attach(self, context: DeviceContext) -> None:
        """Do nothing: the device needs no context."""

    def pause(self) -> None:
        """Do nothing: between two chains nothing is in flight."""

    def resume(self) -> None:
        """Do nothing: ``pause`` stopped nothing."""

    def command(self, command: Command) -> Message:
        raise CommandError(f"{self.name} devices know no {command.WORD}")
