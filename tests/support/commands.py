# SPDX-License-Identifier: BSD-3-Clause
"""Commands to devices, and what tests need of their answers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from devices.virtio.commands import BalloonState, DeviceLimits, SetLimits
from devices.virtio.rate_limiter import LIMIT_NAMES, RateLimits

if TYPE_CHECKING:
    from devices.virtio.commands import Command
    from sys_util.wire import Message


class Commanded(Protocol):
    def command(self, command: Command) -> Message: ...


def set_limits(**named: int) -> SetLimits:
    """Return the command that changes the limits with these names."""
    assert named.keys() <= set(LIMIT_NAMES)
    return SetLimits(tuple(named.get(name) for name in LIMIT_NAMES))


def limits_of(device: Commanded, **changes: int) -> RateLimits:
    """Return a device's limits, after changes to those that are named."""
    answer = device.command(set_limits(**changes))
    assert isinstance(answer, DeviceLimits)
    return RateLimits._make(answer.values)


def ask_balloon(device: Commanded, command: Command) -> BalloonState:
    """Return how a balloon stands once it has carried out a command."""
    answer = device.command(command)
    assert isinstance(answer, BalloonState)
    return answer
