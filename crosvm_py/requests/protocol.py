# SPDX-License-Identifier: BSD-3-Clause
"""What control clients and a VM say to each other: one message each way, msgpack arrays.

A client sends a request and gets one answer. More requests may follow on the same connection,
one at a time. Numbers are never reused; a VM that is too old for a request answers ``Failed``.
"""

from __future__ import annotations

from crosvm_py.requests.balloon import BalloonAdjust, BalloonQuery, BalloonSet, BalloonState
from crosvm_py.requests.devices import (
    DeviceLimits,
    DeviceList,
    DiskSize,
    LimitDevice,
    ListDevices,
    ResizeDisk,
    RestartDevice,
)
from crosvm_py.requests.net import SetLink
from sys_util.facts import fact
from sys_util.typing import TYPE_CHECKING, ClassVar, Final, TypeAlias
from sys_util.wire import Codec, text

if TYPE_CHECKING:
    from sys_util.wire import Check

MAX_REQUEST_BYTES: Final = 4096
MAX_RESPONSE_BYTES: Final = 64 * 1024
MAX_REASON_CHARS: Final = 1024


@fact
class Stop:
    """End the VM at once. ``Done`` means it will; the connection closes when it is gone."""

    TYPE: ClassVar[int] = 1
    FIELDS: ClassVar[tuple[Check, ...]] = ()


@fact
class Suspend:
    """Hold all vCPUs still. ``Done`` means that none runs guest code any more."""

    TYPE: ClassVar[int] = 2
    FIELDS: ClassVar[tuple[Check, ...]] = ()


@fact
class Resume:
    """Let the vCPUs of a suspended VM run."""

    TYPE: ClassVar[int] = 3
    FIELDS: ClassVar[tuple[Check, ...]] = ()


@fact
class PowerButton:
    """Press the ACPI power button; what follows is up to the guest."""

    TYPE: ClassVar[int] = 4
    FIELDS: ClassVar[tuple[Check, ...]] = ()


@fact
class Done:
    """It was done."""

    TYPE: ClassVar[int] = 64
    FIELDS: ClassVar[tuple[Check, ...]] = ()


@fact
class Failed:
    """It was not done; ``reason`` is one line for people."""

    TYPE: ClassVar[int] = 65
    FIELDS: ClassVar[tuple[Check, ...]] = (text(MAX_REASON_CHARS),)
    reason: str


Request: TypeAlias = (
    Stop
    | Suspend
    | Resume
    | PowerButton
    | ListDevices
    | LimitDevice
    | ResizeDisk
    | RestartDevice
    | SetLink
    | BalloonSet
    | BalloonAdjust
    | BalloonQuery
)
Response: TypeAlias = Done | Failed | DeviceList | DeviceLimits | DiskSize | BalloonState

REQUESTS: Final = Codec(
    (
        Stop,
        Suspend,
        Resume,
        PowerButton,
        ListDevices,
        LimitDevice,
        ResizeDisk,
        RestartDevice,
        SetLink,
        BalloonSet,
        BalloonAdjust,
        BalloonQuery,
    )
)
RESPONSES: Final = Codec((Done, Failed, DeviceList, DeviceLimits, DiskSize, BalloonState))
