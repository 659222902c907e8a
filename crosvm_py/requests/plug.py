# SPDX-License-Identifier: BSD-3-Clause
"""Requests to plug a device into a running VM and to remove one.

A client sends ``Plug`` to the control process, which carries it out with the help of its opener and
of the vmm. It asks the vmm for what only the vmm knows, by ``Reserve``, ``Await`` and ``Release``.
No client may send those.
"""

from __future__ import annotations

from crosvm_py.requests.protocol import MAX_REASON_CHARS, Done
from sys_util.facts import fact
from sys_util.landlock import MAX_LANDLOCK_CHARS, MAX_LANDLOCK_RULES, LandlockRule
from sys_util.typing import TYPE_CHECKING, ClassVar, Final
from sys_util.wire import U16, U32, blob, integer, optional, record, sequence, text

if TYPE_CHECKING:
    from sys_util.wire import Check, Message

MAX_ID_CHARS: Final = 64
MAX_SPEC_BYTES: Final = 2048
MAX_PATH_BYTES: Final = 1536
_KIND: Final = text(32)
_SLOT: Final = optional(integer(0, 255))  # in its segment
RULES: Final = sequence(record(LandlockRule, text(MAX_LANDLOCK_CHARS), text(2)), MAX_LANDLOCK_RULES)


@fact
class Plugged:
    """The device is there, and the guest was told; ``bdf`` is its PCI address, 0000:00:06.0."""

    TYPE: ClassVar[int] = 96
    FIELDS: ClassVar[tuple[Check, ...]] = (text(MAX_ID_CHARS), text(16))
    id: str
    bdf: str


@fact
class Reserved:
    """A slot and a name are reserved for a device; the VM has so many ``cpus``."""

    TYPE: ClassVar[int] = 97
    FIELDS: ClassVar[tuple[Check, ...]] = (U32, text(MAX_ID_CHARS), U16)
    place: int
    name: str
    cpus: int


@fact
class Plug:
    """Plug in a device of this ``kind``; ``Plugged`` is the answer.

    ``spec`` is its packed Spec, without the ``path`` of what it uses on the host. With an empty
    ``id`` the VM chooses one, and without ``slot`` the lowest that is free in the PCI ``segment``.
    """

    TYPE: ClassVar[int] = 52
    FIELDS: ClassVar[tuple[Check, ...]] = (
        *(_KIND, blob(MAX_SPEC_BYTES), blob(MAX_PATH_BYTES)),
        *(text(MAX_ID_CHARS), _SLOT, U16),
    )
    ANSWER: ClassVar[type[Message]] = Plugged
    IN_CONTROL: ClassVar[bool] = True  # the vmm does not serve it
    kind: str
    spec: bytes
    path: bytes
    id: str = ""
    slot: int | None = None
    segment: int = 0


@fact
class Unplug:
    """Ask the guest to let a device go, which is removed when the guest has done so.

    ``Done`` means that the guest was asked.
    """

    TYPE: ClassVar[int] = 53
    FIELDS: ClassVar[tuple[Check, ...]] = (text(MAX_ID_CHARS),)
    ANSWER: ClassVar[type[Message]] = Done
    id: str


@fact
class Reserve:
    """Reserve a name and a slot for a device that the opener will order; see ``Plug``."""

    TYPE: ClassVar[int] = 54
    FIELDS: ClassVar[tuple[Check, ...]] = (_KIND, text(MAX_ID_CHARS), _SLOT, U16)
    ANSWER: ClassVar[type[Message]] = Reserved
    BY_CONTROL: ClassVar[bool] = True  # no client may send it
    kind: str
    id: str
    slot: int | None
    segment: int = 0


@fact
class Await:
    """Answer when the device of this ``place`` is there, or when it is clear that it never is."""

    TYPE: ClassVar[int] = 55
    FIELDS: ClassVar[tuple[Check, ...]] = (U32,)
    ANSWER: ClassVar[type[Message]] = Plugged
    BY_CONTROL: ClassVar[bool] = True
    place: int


@fact
class Release:
    """Give a place up: nothing was ordered for it, for the ``reason``."""

    TYPE: ClassVar[int] = 56
    FIELDS: ClassVar[tuple[Check, ...]] = (U32, text(MAX_REASON_CHARS))
    ANSWER: ClassVar[type[Message]] = Done
    BY_CONTROL: ClassVar[bool] = True
    place: int
    reason: str


@fact
class Confine:
    """Have the opener open only what these rules allow, for the rest of its life."""

    TYPE: ClassVar[int] = 61
    FIELDS: ClassVar[tuple[Check, ...]] = (RULES,)
    ANSWER: ClassVar[type[Message]] = Done
    BY_CONTROL: ClassVar[bool] = True
    IN_CONTROL: ClassVar[bool] = True
    rules: tuple[LandlockRule, ...]
