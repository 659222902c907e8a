# SPDX-License-Identifier: BSD-3-Clause
"""The messages between the warden, the forge and a mould.

A mould is an interpreter that the forge executes. It makes one process, then it ends. With the
request for a mould the warden sends one end of a new channel. All answers come through that channel
from the forge's child, both before and after it executes the interpreter.
"""

from __future__ import annotations

from sys_util.facts import fact
from sys_util.typing import TYPE_CHECKING, ClassVar, Final, NamedTuple
from sys_util.wire import U32, Codec, blob, boolean, optional, record, sequence, text

if TYPE_CHECKING:
    from sys_util.wire import Check

MAX_ORDER_BYTES: Final = 16 * 1024
MAX_REASON_CHARS: Final = 512


@fact
class Execute:
    """To the forge: execute a mould. The descriptor is the mould's end of its channel."""

    TYPE: ClassVar[int] = 1
    FIELDS: ClassVar[tuple[Check, ...]] = ()


@fact
class Load:
    """To a mould, first of all: import these ``kinds`` of device, too.

    They were added to the VM while the guest ran, so the forge does not know them.
    """

    TYPE: ClassVar[int] = 3
    FIELDS: ClassVar[tuple[Check, ...]] = (sequence(text(32), 32),)
    kinds: tuple[str, ...]


@fact
class Cast:
    """To a mould: make the process of a device, or its broker, as a child of the warden.

    ``order`` is an encoded ``Spawn``. The descriptors are the pipe on which the new process waits
    for the byte, with ``in_cgroup`` the directory of its cgroup, then the process's own. ``uid``
    and ``gid`` are the ids of the process inside its user namespace.
    """

    TYPE: ClassVar[int] = 2
    FIELDS: ClassVar[tuple[Check, ...]] = (
        *(blob(MAX_ORDER_BYTES), boolean, boolean),
        *(optional(U32), optional(U32)),
    )
    order: bytes
    as_broker: bool
    in_cgroup: bool
    uid: int | None
    gid: int | None


@fact
class Begun:
    """The mould is process ``pid``, a child of the warden, and is about to execute Python."""

    TYPE: ClassVar[int] = 32
    FIELDS: ClassVar[tuple[Check, ...]] = (U32,)
    pid: int


@fact
class Loaded:
    """Everything is imported, and the mould is under the warden's filter."""

    TYPE: ClassVar[int] = 33
    FIELDS: ClassVar[tuple[Check, ...]] = ()


@fact
class Failed:
    """The mould cannot start, or cannot make its process; this is its last message."""

    TYPE: ClassVar[int] = 34
    FIELDS: ClassVar[tuple[Check, ...]] = (text(MAX_REASON_CHARS),)
    reason: str


@fact
class Born:
    """The new process is ``pid``, a child of the warden; the mould now ends."""

    TYPE: ClassVar[int] = 35
    FIELDS: ClassVar[tuple[Check, ...]] = (U32,)
    pid: int


@fact
class CallDenied:
    """The last message of a mould: a filter trapped a system call."""

    TYPE: ClassVar[int] = 36
    FIELDS: ClassVar[tuple[Check, ...]] = (U32,)
    number: int


@fact
class ForgeDenied:
    """The only message of the forge, and its last: a filter trapped a system call."""

    TYPE: ClassVar[int] = 37
    FIELDS: ClassVar[tuple[Check, ...]] = (U32,)
    number: int


# What the SIGSYS handlers write before the number of the call.
CALL_DENIED_HEAD: Final = bytes([0x92, CallDenied.TYPE])
FORGE_DENIED_HEAD: Final = bytes([0x92, ForgeDenied.TYPE])
# A mould that cannot import our modules writes this, the length in two bytes, and an ASCII reason.
FAILED_HEAD: Final = bytes([0x92, Failed.TYPE, 0xDA])


class StoredPolicy(NamedTuple):
    """A filter in the sealed memfd for moulds; the warden's filter is the first one there."""

    name: str
    bpf: bytes
    is_recorded: bool


STORED_POLICIES: Final = sequence(record(StoredPolicy, text(64), blob(1 << 20), boolean), 64)

FORGE_CODEC: Final = Codec((Execute,))
MOULD_CODEC: Final = Codec((Load, Cast))
FROM_FORGE_CODEC: Final = Codec((ForgeDenied,))
FROM_MOULD_CODEC: Final = Codec((Begun, Loaded, Failed, Born, CallDenied))
