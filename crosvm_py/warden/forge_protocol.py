# SPDX-License-Identifier: BSD-3-Clause
"""What the warden says to the forge and to a mould, and what they say to it.

A mould is an interpreter that the forge executes. With the request for it the warden sends the
mould's end of a channel; over this channel come all answers, first from the forge's child, then
from the mould. A mould makes one process, then it ends.
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
class Cast:
    """To a mould: make the process of a device, or its broker, as a child of the warden.

    The descriptors: where it waits for the byte that lets it go; with ``in_cgroup`` the directory
    of its group; then its own. ``order`` is an encoded ``Spawn``; user and group are those that it
    becomes inside its user namespace.
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
    """The mould is process ``pid``, a child of the warden; next it is executed."""

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
    """There is no mould, or it makes no process; this is its last message."""

    TYPE: ClassVar[int] = 34
    FIELDS: ClassVar[tuple[Check, ...]] = (text(MAX_REASON_CHARS),)
    reason: str


@fact
class Born:
    """The process exists: ``pid``, a child of the warden; the mould ends."""

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
    """The only message of the forge, of the same kind, and its last."""

    TYPE: ClassVar[int] = 37
    FIELDS: ClassVar[tuple[Check, ...]] = (U32,)
    number: int


# What the handlers of SIGSYS write before the call's number.
CALL_DENIED_HEAD: Final = bytes([0x92, CallDenied.TYPE])
FORGE_DENIED_HEAD: Final = bytes([0x92, ForgeDenied.TYPE])
# What a mould that can import nothing writes before its reason: two bytes of length, then ASCII.
FAILED_HEAD: Final = bytes([0x92, Failed.TYPE, 0xDA])


class StoredPolicy(NamedTuple):
    """A filter as the moulds get it, in a sealed memfd: the warden's first, then the others."""

    name: str
    bpf: bytes
    is_recorded: bool


STORED_POLICIES: Final = sequence(record(StoredPolicy, text(64), blob(1 << 20), boolean), 64)

FORGE_CODEC: Final = Codec((Execute,))
MOULD_CODEC: Final = Codec((Cast,))
FROM_FORGE_CODEC: Final = Codec((ForgeDenied,))
FROM_MOULD_CODEC: Final = Codec((Begun, Loaded, Failed, Born, CallDenied))
