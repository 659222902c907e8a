# SPDX-License-Identifier: BSD-3-Clause
"""A device of the common loop whose requests pass a rate limiter first.

A restarted process keeps the limits of the last one and starts with empty buckets, so that a guest
gains nothing when it makes the process end.
"""

from __future__ import annotations

from devices.virtio.commands import DeviceLimits, SetLimits
from devices.virtio.counters import LimitWaits
from devices.virtio.device import CommandError, SimpleDevice
from devices.virtio.rate_limiter import LIMIT_NAMES, RateLimiter, RateLimits
from sys_util.errors import ConfigError, ProtocolError
from sys_util.stranger import brief
from sys_util.typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from devices.virtio.commands import Command
    from devices.virtio.context import DeviceContext
    from devices.virtio.queue.chain import DescriptorChain
    from sys_util.event_loop import Timer
    from sys_util.wire import Message


class LimitedDevice(SimpleDevice):
    """Base of such a device. While something is limited, the device itself is its gate."""

    def __init__(self, limits: RateLimits) -> None:
        self.gate: LimitedDevice | None = None
        self._limiter = RateLimiter(limits)
        self._context: DeviceContext | None = None
        self._timer: Timer | None = None

    def attach(self, context: DeviceContext) -> None:
        self._context = context
        self._limiter.show_waits(LimitWaits(context.counters.cells))
        if not context.saved.is_empty:
            context.saved.restore(self.restore)
            self._limiter.drain()
        self.save()
        self._set_gate()

    def saved_fields(self) -> dict[str, object]:
        """Return what a restarted process has to know."""
        return {"limits": self._limiter.limits}

    def restore(self, fields: dict[str, object]) -> None:
        """Take up what the last process saved; see ``SavedState.restore``.

        Raises:
            VmmError: it saved nonsense.
        """
        limits = fields.get("limits")
        if type(limits) is not list or any(type(value) is not int for value in limits):
            raise ProtocolError(f"limits: {brief(limits)}")
        self._limiter.configure(changed_limits(RateLimits(), limits))

    def save(self) -> None:
        """Store what a restarted process has to know."""
        if self._context is not None:
            self._context.saved.store(self.saved_fields())

    def reset(self) -> None:
        """Forget the driver, but not how much of the limits it has used up."""
        self._limiter.forget_waits()

    def request_bytes(self, chain: DescriptorChain) -> int:
        """Return how many bytes a request claims to move."""
        return chain.reader.remaining + chain.writer.remaining

    def moved_bytes(self, passed: int) -> int:
        """Return how many bytes the last request moved, if ``passed`` went through its chain."""
        return passed

    def command(self, command: Command) -> Message:
        if not isinstance(command, SetLimits):
            return super().command(command)
        limits = changed_limits(self._limiter.limits, command.values)
        if limits != self._limiter.limits:
            self._limiter.configure(limits)
            self.save()
            self._set_gate()
            self._open()
        return DeviceLimits(tuple(limits))

    def _set_gate(self) -> None:
        self.gate = self if self._limiter.active else None

    # Gate

    def admit(self, queue_index: int, chain: DescriptorChain) -> bool:
        if self._limiter.take(self.request_bytes(chain), queue_index):
            return True
        if self._timer is None and self._context is not None:
            seconds = self._limiter.retry_seconds
            self._timer = self._context.call_later(seconds, self._open)
        return False

    def settle(self, passed: int) -> None:
        self._limiter.settle(self.moved_bytes(passed))

    def _open(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._context is not None:
            self._context.serve_again()


def changed_limits(limits: RateLimits, values: Sequence[int | None]) -> RateLimits:
    """Return ``limits`` changed by ``values``, in the order of ``LIMIT_NAMES``; None changes none.

    Raises:
        CommandError: they make no sense.
    """
    if len(values) != len(LIMIT_NAMES):
        raise CommandError(f"limit: {len(values)} values instead of {len(LIMIT_NAMES)}")
    changed = RateLimits._make(
        old if new is None else new for old, new in zip(limits, values, strict=True)
    )
    try:
        changed.check()
    except ConfigError as error:
        raise CommandError(f"limit: {error}") from error
    return changed
