# SPDX-License-Identifier: BSD-3-Clause
"""Requests to a vmm that waits for its VM; the control process makes them for the REST API.

They are no requests of clients of the control socket, which the catalogue therefore does not have.
"""

from __future__ import annotations

from crosvm_py.requests.protocol import MAX_REASON_CHARS, Done
from sys_util.facts import fact
from sys_util.typing import TYPE_CHECKING, ClassVar, Final
from sys_util.wire import U32, integer, sequence, text

if TYPE_CHECKING:
    from sys_util.wire import Check, Message

MAX_REASONS: Final = 8
# What a message of the channel can carry.
MAX_FDS: Final = 130

IS_INTERNAL: Final = True


@fact
class Booted:
    """The answer to ``BootVm``: status 0, or one of HTTP and why, outermost reason first."""

    TYPE: ClassVar[int] = 101
    FIELDS: ClassVar[tuple[Check, ...]] = (
        integer(0, 599),
        sequence(text(MAX_REASON_CHARS), MAX_REASONS),
    )
    status: int
    reasons: tuple[str, ...]


@fact
class BootVm:
    """Start the VM whose configuration is in the store."""

    TYPE: ClassVar[int] = 42
    FIELDS: ClassVar[tuple[Check, ...]] = ()
    ANSWER: ClassVar[type[Message]] = Booted


@fact
class EndVm:
    """End the VM, not the vmm. ``Done`` means that it has ended."""

    TYPE: ClassVar[int] = 43
    FIELDS: ClassVar[tuple[Check, ...]] = ()
    ANSWER: ClassVar[type[Message]] = Done


@fact
class ForgetVm:
    """The configuration is gone: close the descriptors that were kept for it."""

    TYPE: ClassVar[int] = 44
    FIELDS: ClassVar[tuple[Check, ...]] = ()
    ANSWER: ClassVar[type[Message]] = Done


@fact
class KeptFds:
    """The answer to ``KeepFds``: the numbers that the descriptors have in the vmm."""

    TYPE: ClassVar[int] = 102
    FIELDS: ClassVar[tuple[Check, ...]] = (sequence(U32, MAX_FDS),)
    numbers: tuple[int, ...]


@fact
class KeepFds:
    """Keep the descriptors that come with this request until the VM is deleted."""

    TYPE: ClassVar[int] = 45
    FIELDS: ClassVar[tuple[Check, ...]] = ()
    ANSWER: ClassVar[type[Message]] = KeptFds


@fact
class DropFds:
    """Close descriptors that ``KeepFds`` has kept: their device was removed before the boot."""

    TYPE: ClassVar[int] = 46
    FIELDS: ClassVar[tuple[Check, ...]] = (sequence(U32, MAX_FDS),)
    ANSWER: ClassVar[type[Message]] = Done
    numbers: tuple[int, ...]


INTERNAL: Final = (BootVm, EndVm, ForgetVm, KeepFds, DropFds)
