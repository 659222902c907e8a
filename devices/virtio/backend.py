# SPDX-License-Identifier: BSD-3-Clause
"""The seam between the virtio-pci transport (in the vmm) and a device (a process of its own).

Every call here returns at once: a vCPU thread makes it while it holds the device-model lock. What
the device answers comes back later through ``BackendEvents``, with that lock held again.
"""

from __future__ import annotations

from sys_util.typing import TYPE_CHECKING, NamedTuple, Protocol

if TYPE_CHECKING:
    from collections.abc import Sequence


class QueueActivation(NamedTuple):
    """One enabled queue as the driver configured it (virtio 1.3 §4.1.4.3).

    Both descriptors are eventfds owned by the transport: ``kick_fd`` is signalled by the driver,
    ``call_fd`` by the device. ``resume`` says that an earlier device process served this queue, so
    that the rings and not zero say where to go on.
    """

    index: int  # type: ignore[assignment]  # hides tuple.index(), which nobody needs here
    size: int
    desc_table: int
    avail_ring: int
    used_ring: int
    kick_fd: int
    call_fd: int
    resume: bool


class VirtioBackend(Protocol):
    """What the transport needs from a device, wherever it runs."""

    @property
    def name(self) -> str:
        """The device's name in logs, such as ``block:0``."""
        ...

    @property
    def device_type(self) -> int:
        """The virtio device id (virtio 1.3 §5), 2 for a block device."""
        ...

    @property
    def features(self) -> int:
        """Every feature bit on offer, the base ones included."""
        ...

    @property
    def queue_sizes(self) -> tuple[int, ...]:
        """The greatest size of each queue."""
        ...

    @property
    def config(self) -> bytes:
        """The current copy of the device configuration; reading it never waits."""
        ...

    def activate(self, features: int, queues: Sequence[QueueActivation]) -> None:
        """Start serving ``queues``: the driver set DRIVER_OK."""
        ...

    def reset(self) -> None:
        """Stop every queue and forget the driver; ``reset_done`` follows."""
        ...

    def enable_queue(self, queue: QueueActivation) -> None:
        """Start one more queue, which the driver enabled again after a queue reset."""
        ...

    def reset_queue(self, index: int) -> None:
        """Stop one queue (virtio 1.3 §2.6.1); ``queue_reset_done`` follows."""
        ...

    def write_config(self, offset: int, data: bytes) -> None:
        """Pass on the driver's write, which lies inside ``config``."""
        ...


class BackendEvents(Protocol):
    """What a device tells its transport. Each call needs the device-model lock.

    Calls that answer nothing (an unasked-for ``reset_done``) are ignored: the device is not
    trusted.
    """

    def reset_done(self) -> None:
        """The device stopped: ``device_status`` becomes 0."""
        ...

    def queue_reset_done(self, index: int) -> None:
        """Queue ``index`` stopped: the driver may configure it again."""
        ...

    def set_needs_reset(self) -> None:
        """The device cannot go on before the driver resets it (virtio 1.3 §2.1.2)."""
        ...

    def config_changed(self, config: bytes) -> None:
        """The device configuration is now ``config``; the driver is told."""
        ...

    def config_written(self, config: bytes) -> None:
        """The driver's write made the device configuration ``config``."""
        ...

    def reactivate(self, backend: VirtioBackend) -> None:
        """A new process has the device: queues that were active go on where they stood.

        Raises:
            ProtocolError: it is another device than the last one was.
        """
        ...

    def backend_lost(self) -> None:
        """The device has no process any more, and will have none."""
        ...
