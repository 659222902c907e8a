# SPDX-License-Identifier: BSD-3-Clause
"""The interface between the virtio-pci transport (in the vmm) and a device (its own process).

Every call here returns at once: a vCPU thread makes it while it holds the device-model lock. What
the device answers comes back later through ``BackendEvents``, with that lock held again.
"""

from __future__ import annotations

from sys_util.typing import TYPE_CHECKING, Final, NamedTuple, Protocol

if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Literal, TypeAlias

    Server: TypeAlias = Literal["nobody", "device", "engine", "port", "port (engine)", "kernel"]

    from devices.pci.msix import VectorState

# Every ``Server`` that there is, for those who check what a process says.
SERVERS: Final[tuple[Server, ...]] = (
    *("nobody", "device", "engine", "port", "port (engine)", "kernel"),
)


class QueueActivation(NamedTuple):
    """One enabled queue as the driver configured it (virtio 1.3 §4.1.4.3).

    Both descriptors are eventfds owned by the transport: ``kick_fd`` is signalled by the driver,
    ``call_fd`` by the device. ``resume`` says that an earlier device process served this queue: the
    new one goes on where the used ring ends, and not at zero.
    """

    index: int  # type: ignore[assignment]  # hides tuple.index(), which nobody needs here
    size: int
    desc_table: int
    avail_ring: int
    used_ring: int
    kick_fd: int
    call_fd: int
    resume: bool


class RingPosition(NamedTuple):
    """What the device side knows of a queue, to debug one that stands still.

    All are free-running 16-bit indices but ``idle``, which says that the device does not serve the
    queue again by itself: something else has to ask for the next turn, such as a kick.
    """

    seen_avail: int
    next_avail: int
    next_used: int
    published: int
    signalled: int
    idle: bool


class QueuePosition(NamedTuple):
    """One started queue as its device sees it.

    ``server`` is device, engine (native code), port (the device's own way), port (engine) (that
    way, and native code moves the data), kernel (vhost), or nobody where the driver made the queue
    unusable. ``ring`` is ``None`` where the device does not know it. ``has_more`` says that the
    device will serve the queue again without a kick.
    """

    index: int  # type: ignore[assignment]  # hides tuple.index(), which nobody needs here
    server: Server
    ring: RingPosition | None
    has_more: bool


class DeviceWords(NamedTuple):
    """What a device process tells of itself.

    ``held``: why none of its events is served now. ``timer_ms``: when its next timer is due, below
    0 if it is overdue; ``None`` if there is none.
    """

    held: tuple[str, ...]
    timer_ms: int | None
    queues: tuple[QueuePosition, ...]


class TransportQueue(NamedTuple):
    """One queue as the driver set it up, and the kicks that its device has not seen.

    ``kick_held``: kept back while bus mastering is off; ``direct``: kicks take KVM's ioeventfd.
    """

    size: int
    enabled: bool
    resetting: bool
    vector: int
    uses_intx: bool
    desc_table: int
    avail_ring: int
    used_ring: int
    kicked: bool
    kick_held: bool
    direct: bool


class TransportState(NamedTuple):
    """What the transport knows of a device, to debug one that stands still."""

    status: int
    driver_features: int
    bus_master: bool
    msix_enabled: bool
    function_masked: bool
    config_vector: int
    isr: int
    intx_asserted: bool
    intx_signalled: bool
    queues: tuple[TransportQueue, ...]
    vectors: tuple[VectorState, ...]


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

    @property
    def early_writes(self) -> bool:
        """Whether a driver may write to the configuration before it has negotiated."""
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

    A call that answers no request (a ``reset_done`` where no reset is under way) is ignored: the
    device is not trusted.
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
        """The device has a new process: queues that were active go on where they stopped.

        Raises:
            ProtocolError: the new process announces another device than the last one did.
        """
        ...

    def describe(self) -> TransportState:
        """Return what the transport knows of the device; this changes nothing."""
        ...

    def backend_lost(self) -> None:
        """The device has no process any more, and will have none."""
        ...
