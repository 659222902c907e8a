# SPDX-License-Identifier: BSD-3-Clause
"""The messages between the vmm and the warden, and those that order devices of it later.

The guest may have taken the vmm over once it runs. So after ``Seal`` the warden takes an order for
a new device (``Add``) from the control process alone, whose opener has a channel of its own to it.
"""

from __future__ import annotations

from crosvm_py.kinds.order import NO_CONNECTS, Connects
from sys_util.facts import fact
from sys_util.guest_memory import MemoryRegion
from sys_util.typing import TYPE_CHECKING, ClassVar, Final
from sys_util.wire import (
    I32,
    U16,
    U32,
    U64,
    Codec,
    blob,
    boolean,
    integer,
    record,
    sequence,
    text,
)

if TYPE_CHECKING:
    from sys_util.wire import Check

_MAX_REGIONS: Final = 16

MAX_FILE_BYTES: Final = (1 << 63) - 1  # offsets of files are signed

_REGIONS: Final = sequence(record(MemoryRegion, U64, U64, U64, U64), _MAX_REGIONS)


@fact
class Spawn:
    """Make a device process, and be ready to make it again.

    The descriptors are guest memory, the page of counters, then the device's own, which the warden
    keeps. The last ``reopened`` of them, such as /dev/vhost-net, cannot serve a second process, so
    the warden opens them again for each process.
    """

    TYPE: ClassVar[int] = 1
    FIELDS: ClassVar[tuple[Check, ...]] = (
        U32,
        text(64),
        text(32),
        blob(8192),
        _REGIONS,
        U64,
        record(Connects, blob(255), U32, U32),
        U16,
        boolean,
    )
    device_id: int
    name: str
    kind: str
    spec: bytes
    regions: tuple[MemoryRegion, ...]
    max_file_bytes: int
    connects: Connects = NO_CONNECTS
    reopened: int = 0
    huge_pages: bool = True


@fact
class Kill:
    """End a device process that broke the protocol or a deadline."""

    TYPE: ClassVar[int] = 2
    FIELDS: ClassVar[tuple[Check, ...]] = (U32,)
    device_id: int


@fact
class Resize:
    """Resize the file that a device writes; a block device is only measured again.

    The warden does this because the vmm has no descriptor of the file, and because the file size
    limit of the device process has to change with it.
    """

    TYPE: ClassVar[int] = 3
    FIELDS: ClassVar[tuple[Check, ...]] = (U32, integer(0, MAX_FILE_BYTES))
    device_id: int
    size_bytes: int


@fact
class VmmDenied:
    """The vmm's last message: a filter trapped a system call. Sent by the handler of SIGSYS."""

    TYPE: ClassVar[int] = 4
    FIELDS: ClassVar[tuple[Check, ...]] = (U32, boolean)
    number: int
    in_vcpu: bool


@fact
class Respawn:
    """Make the next process of a device; its last one has ended.

    The descriptors are guest memory and the page of counters.
    """

    TYPE: ClassVar[int] = 5
    FIELDS: ClassVar[tuple[Check, ...]] = (U32,)
    device_id: int


@fact
class Renew:
    """Load the device code as it is installed now, for the next process of a device.

    ``Renewed`` answers it. The device's present process goes on.
    """

    TYPE: ClassVar[int] = 7
    FIELDS: ClassVar[tuple[Check, ...]] = (U32,)
    device_id: int


@fact
class Seal:
    """Refuse any further ``Spawn``: the guest runs next, and might take over the vmm.

    The fields are what devices that are added later have to know of guest memory.
    """

    TYPE: ClassVar[int] = 6
    FIELDS: ClassVar[tuple[Check, ...]] = (_REGIONS, boolean)
    regions: tuple[MemoryRegion, ...] = ()
    huge_pages: bool = True


@fact
class Forget:
    """End a device for good: its process, and the descriptors to make another from.

    ``Forgotten`` answers it.
    """

    TYPE: ClassVar[int] = 8
    FIELDS: ClassVar[tuple[Check, ...]] = (U32,)
    device_id: int


@fact
class Add:
    """From the opener: be ready to make a device while the guest runs.

    The descriptors are the device's own, as for ``Spawn``. ``place`` is what the vmm has reserved
    for the device; only the vmm knows what it means. The warden makes no process yet.
    """

    TYPE: ClassVar[int] = 64
    FIELDS: ClassVar[tuple[Check, ...]] = (
        *(U32, text(64), text(32), blob(8192), integer(0, MAX_FILE_BYTES)),
        *(record(Connects, blob(255), U32, U32), U16),
    )
    place: int
    name: str
    kind: str
    spec: bytes
    max_file_bytes: int
    connects: Connects = NO_CONNECTS
    reopened: int = 0


@fact
class NotAdded:
    """To the opener: the warden does not take the device."""

    TYPE: ClassVar[int] = 65
    FIELDS: ClassVar[tuple[Check, ...]] = (U32, text(1024))
    place: int
    reason: str


@fact
class Added:
    """To the vmm: the warden has what a new device is made from; ``Respawn`` makes its process."""

    TYPE: ClassVar[int] = 40
    FIELDS: ClassVar[tuple[Check, ...]] = (U32, U32, text(64), text(32), boolean)
    device_id: int
    place: int
    name: str
    kind: str
    writes_file: bool


@fact
class Forgotten:
    """Nothing is left of the device, and its number is not used again."""

    TYPE: ClassVar[int] = 41
    FIELDS: ClassVar[tuple[Check, ...]] = (U32,)
    device_id: int


@fact
class Spawned:
    """The process exists; ``pid`` is its number on the host, the descriptor its channel."""

    TYPE: ClassVar[int] = 32
    FIELDS: ClassVar[tuple[Check, ...]] = (U32, U32)
    device_id: int
    pid: int


@fact
class SpawnFailed:
    """The process could not be made."""

    TYPE: ClassVar[int] = 33
    FIELDS: ClassVar[tuple[Check, ...]] = (U32, text(1024))
    device_id: int
    reason: str


@fact
class Exited:
    """The process has ended with ``status``, as ``os.waitstatus_to_exitcode`` returns it.

    ``cause`` says more if the warden knows more, as when the process hit its memory limit.
    """

    TYPE: ClassVar[int] = 34
    FIELDS: ClassVar[tuple[Check, ...]] = (U32, U32, I32, text(256))
    device_id: int
    pid: int
    status: int
    cause: str = ""


@fact
class Resized:
    """The file has ``size_bytes`` now, or keeps its old size for the ``reason``."""

    TYPE: ClassVar[int] = 35
    FIELDS: ClassVar[tuple[Check, ...]] = (U32, U64, text(256))
    device_id: int
    size_bytes: int
    reason: str


@fact
class Sealed:
    """The answer to ``Seal``: the warden makes no further device and is confined."""

    TYPE: ClassVar[int] = 37
    FIELDS: ClassVar[tuple[Check, ...]] = ()


@fact
class Renewed:
    """The new code is loaded for the device's next process, or cannot be for the ``reason``."""

    TYPE: ClassVar[int] = 39
    FIELDS: ClassVar[tuple[Check, ...]] = (U32, text(1024))
    device_id: int
    reason: str


@fact
class WardenDenied:
    """The warden's last message: a filter trapped a system call."""

    TYPE: ClassVar[int] = 36
    FIELDS: ClassVar[tuple[Check, ...]] = (U32,)
    number: int


@fact
class CannotStart:
    """The warden's last message: it cannot start."""

    TYPE: ClassVar[int] = 38
    FIELDS: ClassVar[tuple[Check, ...]] = (text(1024),)
    reason: str


# What the SIGSYS handlers write before the call's number: the header of a msgpack array, the type.
VMM_DENIED_HEAD: Final = bytes([0x93, VmmDenied.TYPE])
WARDEN_DENIED_HEAD: Final = bytes([0x92, WardenDenied.TYPE])

WARDEN_CODEC: Final = Codec((Spawn, Respawn, Renew, Kill, Resize, VmmDenied, Seal, Forget))
VMM_CODEC: Final = Codec(
    (
        *(Spawned, SpawnFailed, Exited, Resized, Renewed, WardenDenied, Sealed, CannotStart),
        *(Added, Forgotten),
    )
)
ORDERS_CODEC: Final = Codec((Add,))
OPENER_CODEC: Final = Codec((NotAdded,))
