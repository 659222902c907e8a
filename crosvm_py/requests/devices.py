# SPDX-License-Identifier: BSD-3-Clause
"""The control messages about devices."""

from __future__ import annotations

from crosvm_py.requests.protocol import Done
from devices.pci.address import MAX_DEVICES
from devices.virtio.commands import DeviceLimits, DiskSize
from devices.virtio.rate_limiter import LIMIT_NAMES
from sys_util.facts import fact
from sys_util.typing import TYPE_CHECKING, ClassVar, Final, NamedTuple
from sys_util.wire import U16, U32, U64, boolean, integer, optional, record, sequence, text

if TYPE_CHECKING:
    from sys_util.wire import Check, Message

MAX_NAME_CHARS: Final = 64
MAX_DISK_BYTES: Final = (1 << 63) - 1  # offsets of files are signed
_MAX_QUEUES: Final = 64
_MAX_COUNTERS: Final = 32
MAX_CGROUP_CHARS: Final = 512


class QueueInfo(NamedTuple):
    """One queue of a device.

    ``limit_wait_ms`` is how long it has yet to wait because of the device's rate limit, or 0.
    ``engine`` is what serves it: ``native``, ``python`` or ``vhost``; empty unless it is enabled.
    """

    size: int
    enabled: bool
    limit_wait_ms: int = 0
    engine: str = ""


class CounterInfo(NamedTuple):
    """One counter; its value never decreases."""

    name: str
    value: int


class DeviceInfo(NamedTuple):
    """One device, as the vmm sees it.

    ``cgroup`` is the directory of its group in cgroup v2, empty if it has none. ``link`` is what a
    network card shows the guest, "up" or "down"; other devices have none. ``slot`` is the number
    of the device's PCI slot (``devices.pci.address``), 0 if that is not known; ``bar_gpa`` is the
    address of its BAR in guest-physical memory, 0 while the guest has it nowhere.
    """

    index: int  # type: ignore[assignment]  # hides tuple.index(), which nobody needs here
    name: str
    pid: int
    state: str
    policy: str
    queues: tuple[QueueInfo, ...]
    counters: tuple[CounterInfo, ...]
    cgroup: str = ""
    link: str = ""
    slot: int = 0
    bar_gpa: int = 0


@fact
class DeviceList:
    """Every device, in the order of their slots."""

    TYPE: ClassVar[int] = 66
    FIELDS: ClassVar[tuple[Check, ...]] = (
        sequence(
            record(
                DeviceInfo,
                U16,
                text(MAX_NAME_CHARS),
                U32,
                text(16),
                text(MAX_NAME_CHARS),
                sequence(record(QueueInfo, U16, boolean, U64, text(8)), _MAX_QUEUES),
                sequence(record(CounterInfo, text(MAX_NAME_CHARS), U64), _MAX_COUNTERS),
                text(MAX_CGROUP_CHARS),
                text(8),
                U16,
                U64,
            ),
            MAX_DEVICES,
        ),
    )
    devices: tuple[DeviceInfo, ...]


@fact
class ListDevices:
    """List all devices; ``DeviceList`` is the answer."""

    TYPE: ClassVar[int] = 5
    FIELDS: ClassVar[tuple[Check, ...]] = ()
    ANSWER: ClassVar[type[Message]] = DeviceList


@fact
class LimitDevice:
    """Change the rate limits of a device: one value for each of ``LIMIT_NAMES``.

    A limit whose value is nil stays as it is. ``DeviceLimits`` is the answer.
    """

    TYPE: ClassVar[int] = 6
    FIELDS: ClassVar[tuple[Check, ...]] = (
        text(MAX_NAME_CHARS),
        sequence(optional(U64), len(LIMIT_NAMES)),
    )
    ANSWER: ClassVar[type[Message]] = DeviceLimits
    device: str
    values: tuple[int | None, ...]


@fact
class ResizeDisk:
    """Resize the disk with this index; a block device is only measured again.

    ``DiskSize`` is the answer.
    """

    TYPE: ClassVar[int] = 7
    FIELDS: ClassVar[tuple[Check, ...]] = (U16, integer(1, MAX_DISK_BYTES))
    ANSWER: ClassVar[type[Message]] = DiskSize
    index: int
    size_bytes: int


@fact
class ResizeNamedDisk:
    """Resize the disk of this name, as ``ResizeDisk`` does one that was there at the start."""

    TYPE: ClassVar[int] = 47
    FIELDS: ClassVar[tuple[Check, ...]] = (text(MAX_NAME_CHARS), integer(1, MAX_DISK_BYTES))
    ANSWER: ClassVar[type[Message]] = DiskSize
    device: str
    size_bytes: int


@fact
class RestartDevice:
    """Replace a device's process by one that runs the code that is installed now.

    ``Done`` means that the new process serves the device.
    """

    TYPE: ClassVar[int] = 12
    FIELDS: ClassVar[tuple[Check, ...]] = (text(MAX_NAME_CHARS),)
    ANSWER: ClassVar[type[Message]] = Done
    device: str
