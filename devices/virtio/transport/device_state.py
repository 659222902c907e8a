# SPDX-License-Identifier: BSD-3-Clause
"""The life of a virtio device: status, features, queues and resets (virtio 1.3 §2.1, §2.6, §3.1).

Nothing here waits. A reset that a device process has to carry out is *pending* until the process
answers. Until then the driver sees the old status, and what it writes is ignored. The configuration
of a queue cannot change while the queue is enabled or the device runs, so that a queue that was
checked and handed to the device stays what it was (CVE-2026-5747 shows what happens otherwise).
"""

from __future__ import annotations

from devices.virtio.backend import QueueActivation
from devices.virtio.features import VIRTIO_F_RING_RESET, VIRTIO_F_VERSION_1
from devices.virtio.transport.device_config import DeviceConfig
from devices.virtio.transport.queue_state import QueueState, check_backend
from sys_util.errors import ProtocolError
from sys_util.log import get_logger
from sys_util.typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from devices.virtio.backend import VirtioBackend
    from devices.virtio.transport.interrupts import Interrupts
    from devices.virtio.transport.notify import NotifyRegion

ACKNOWLEDGE: Final = 1
DRIVER: Final = 2
DRIVER_OK: Final = 4
FEATURES_OK: Final = 8
DEVICE_NEEDS_RESET: Final = 64
FAILED: Final = 128

# Each step of §3.1.1, and the step that must come before it.
_STEPS: Final = (
    (ACKNOWLEDGE, 0),
    (DRIVER, ACKNOWLEDGE),
    (FEATURES_OK, DRIVER),
    (DRIVER_OK, FEATURES_OK),
)

_log = get_logger("devices.virtio.transport").limited()


class DeviceState:
    """One device between driver and backend; implements ``BackendEvents``."""

    def __init__(
        self, backend: VirtioBackend, interrupts: Interrupts, notify: NotifyRegion
    ) -> None:
        self.status = 0
        self.offered_features = backend.features
        self.driver_features = 0
        self.queues = tuple(QueueState(i, size) for i, size in enumerate(backend.queue_sizes))
        self.config = DeviceConfig(backend.config, self._write_config)
        self.interrupts = interrupts
        self._notify = notify
        self._backend = backend
        self._active = False  # the backend was activated and has not been reset since
        self._reset_pending = False
        self._lost = False
        self._waiters: list[Callable[[], None]] = []  # called when the next reset is complete

    def power_on(self, then: Callable[[], None]) -> None:
        """Reset the device with its machine, and call ``then`` when its process has let go.

        That is at once if no process uses guest memory. ``then`` must not wait.
        """
        self._waiters.append(then)
        self._reset()
        if not self._reset_pending:
            self._call_waiters()

    def _call_waiters(self) -> None:
        waiters, self._waiters = self._waiters, []
        for then in waiters:
            then()

    # The driver's side.

    def set_driver_features(self, features: int) -> None:
        """Take the features that the driver accepts, until FEATURES_OK (§3.1.1 step 4)."""
        if not self.status & FEATURES_OK and not self._reset_pending:
            self.driver_features = features

    def write_status(self, value: int) -> None:
        """Take the driver's next steps, or reset the device on 0 (§2.1)."""
        if value == 0:
            self._reset()
            return
        if self._reset_pending:
            return
        if self.status & ~value & ~DEVICE_NEEDS_RESET:
            self._warn("status %#x after %#x clears bits", value, self.status)
            return
        if value & FAILED and not self.status & FAILED:
            self._warn("the driver gave up at status %#x", self.status)
            self.status |= FAILED
        if self.status & (FAILED | DEVICE_NEEDS_RESET):
            return
        for step, needed in _STEPS:
            if value & step and not self.status & step and not self._take_step(step, needed):
                return

    def _take_step(self, step: int, needed: int) -> bool:
        if self.status & needed != needed:
            self._warn("status bit %#x set at status %#x", step, self.status)
            return False
        if step == FEATURES_OK and not self._features_acceptable():
            return False
        self.status |= step
        if step == DRIVER_OK:
            self._activate(resume=False)
        return True

    def _features_acceptable(self) -> bool:
        unknown = self.driver_features & ~self.offered_features
        if unknown:
            self._warn("features %#x acknowledged, but not offered", unknown)
        elif not self.driver_features & 1 << VIRTIO_F_VERSION_1:
            self._warn("features %#x lack VIRTIO_F_VERSION_1", self.driver_features)
        elif self._lost:
            self._warn("no device process: features refused")
        else:
            return True
        return False

    def configurable(self, queue: QueueState) -> bool:
        """Return whether the driver may change ``queue`` now."""
        if queue.enabled or self._reset_pending or self.status & (FAILED | DEVICE_NEEDS_RESET):
            return False
        return queue.was_reset or not self.status & DRIVER_OK

    def enable_queue(self, queue: QueueState) -> None:
        """Check and freeze the queue; a running device gets it at once (§2.6.1.1)."""
        if not self.configurable(queue):
            return
        fault = queue.fault()
        if fault:
            self._warn("queue %d: %s", queue.index, fault)
            self._need_reset()
            return
        queue.enabled = True
        if self._active:
            self._backend.enable_queue(self._activation(queue, resume=False))
            self._notify.start((queue.index,))

    def reset_queue(self, queue: QueueState) -> None:
        """Stop one queue of a running device (§2.6.1)."""
        negotiated = self.driver_features & 1 << VIRTIO_F_RING_RESET
        if not negotiated or not self._active or self._reset_pending:
            return
        if not queue.enabled or queue.resetting:
            return
        queue.resetting = True
        self._notify.stop((queue.index,))
        if self._lost:
            self.queue_reset_done(queue.index)
        else:
            self._backend.reset_queue(queue.index)

    def intx_vectors(self) -> Iterator[int]:
        """Yield the vectors of the queues whose device interrupts through ``intx_fd``."""
        return (queue.vector for queue in self.queues if queue.enabled and queue.uses_intx)

    @property
    def active(self) -> bool:
        """Whether a device serves queues, or is about to stop doing so."""
        return self._active

    # The device's side.

    def reset_done(self) -> None:
        if self._reset_pending:
            self._finish_reset()

    def queue_reset_done(self, index: int) -> None:
        if 0 <= index < len(self.queues) and self.queues[index].resetting:
            self.queues[index].clear()
            self.queues[index].was_reset = True

    def set_needs_reset(self) -> None:
        if self._active and not self._reset_pending:
            self._need_reset()

    def config_written(self, config: bytes) -> None:
        self.config.replace(config)

    def config_changed(self, config: bytes) -> None:
        self.config.replace(config)
        self._interrupt_config()

    def backend_lost(self) -> None:
        """Stop waiting for a device process that is gone and will not come back."""
        self._lost = True
        self._warn("no device process: the driver has to reset the device")
        self._settle_resets()
        self.set_needs_reset()

    def reactivate(self, backend: VirtioBackend) -> None:
        """Let a new device process go on where the last one stopped.

        Raises:
            ProtocolError: the new process announces another device than the last one did.
        """
        check_backend(backend)
        sizes = tuple(queue.max_size for queue in self.queues)
        if (backend.features, backend.queue_sizes) != (self.offered_features, sizes):
            raise ProtocolError(f"{backend.name}: not the features and queues of its predecessor")
        self._backend = backend
        self._lost = False
        self._settle_resets()
        if self._active and self.status & DEVICE_NEEDS_RESET:
            # The queues cannot be used any more, so the new process drops what the last one saved.
            self._active = False
            self._notify.stop(range(len(self.queues)))
            backend.reset()
        if self._active:
            self._activate(resume=True)
        if backend.config != self.config.copy:
            self.config_changed(backend.config)

    # Inside.

    def _settle_resets(self) -> None:
        """Finish the pending resets, which no process is left to carry out."""
        self.reset_done()
        for queue in self.queues:
            self.queue_reset_done(queue.index)

    def _activate(self, *, resume: bool) -> None:
        self._active = True
        enabled = [queue for queue in self.queues if queue.enabled]
        activations = [self._activation(queue, resume=resume) for queue in enabled]
        self._backend.activate(self.driver_features, activations)
        self._notify.start(queue.index for queue in enabled)

    def _activation(self, queue: QueueState, *, resume: bool) -> QueueActivation:
        desc_table, avail_ring, used_ring = queue.addresses
        call_fd = self.interrupts.call_fd(queue.vector)
        queue.uses_intx = call_fd == self.interrupts.intx_fd
        return QueueActivation(
            index=queue.index,
            size=queue.size,
            desc_table=desc_table,
            avail_ring=avail_ring,
            used_ring=used_ring,
            kick_fd=self._notify.kick_fds[queue.index],
            call_fd=call_fd,
            resume=resume,
        )

    def _reset(self) -> None:
        if self._reset_pending:
            return
        self._notify.stop(range(len(self.queues)))
        if self._active and not self._lost:
            self._reset_pending = True
            self._backend.reset()
        else:
            self._finish_reset()

    def _finish_reset(self) -> None:
        self._reset_pending = False
        self._active = False
        self.config.replace(self._backend.config)  # without writes that were never carried out
        self.status = 0
        self.driver_features = 0
        for queue in self.queues:
            queue.clear()
        self.interrupts.reset()
        self._notify.clear()
        self._call_waiters()

    def _need_reset(self) -> None:
        if not self.status & DEVICE_NEEDS_RESET:
            self.status |= DEVICE_NEEDS_RESET
            self.config.advance()
            self._interrupt_config()

    def _interrupt_config(self) -> None:
        """Notify the driver, which is not allowed before DRIVER_OK (§2.1.2, §3.1.1)."""
        if self.status & DRIVER_OK:
            self.interrupts.config_changed()

    def _write_config(self, offset: int, data: bytes) -> None:
        may_write = self._backend.early_writes or self.status & FEATURES_OK
        if may_write and not self._reset_pending and not self._lost:
            self._backend.write_config(offset, data)
            self.config.replace(self._backend.config)

    def _warn(self, fmt: str, *args: object) -> None:
        _log.warning("%s: " + fmt, self._backend.name, *args)
