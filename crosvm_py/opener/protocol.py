# SPDX-License-Identifier: BSD-3-Clause
"""The messages between the control process and its opener."""

from __future__ import annotations

from crosvm_py.requests.plug import MAX_ID_CHARS, MAX_PATH_BYTES, MAX_SPEC_BYTES, RULES
from crosvm_py.requests.protocol import MAX_REASON_CHARS
from sys_util.child_log import CHILD_MESSAGES
from sys_util.facts import fact
from sys_util.landlock import LandlockRule
from sys_util.typing import TYPE_CHECKING, ClassVar, Final
from sys_util.wire import U16, U32, Codec, blob, text

if TYPE_CHECKING:
    from sys_util.wire import Check


@fact
class Open:
    """To the opener: open what a device needs, and order the device of the warden.

    The fields are those of ``requests.plug.Plug`` and of the vmm's answer to ``Reserve``. The
    descriptors are those of the client.
    """

    TYPE: ClassVar[int] = 1
    FIELDS: ClassVar[tuple[Check, ...]] = (
        *(U32, text(MAX_ID_CHARS), text(32), blob(MAX_SPEC_BYTES), blob(MAX_PATH_BYTES), U16),
    )
    place: int
    name: str
    kind: str
    spec: bytes
    path: bytes
    cpus: int


@fact
class Restrict:
    """To the opener: open only what these rules of Landlock allow; ``Restricted`` is the answer."""

    TYPE: ClassVar[int] = 2
    FIELDS: ClassVar[tuple[Check, ...]] = (RULES,)
    rules: tuple[LandlockRule, ...]


@fact
class Make:
    """To the opener: make a file where nothing is, for a core dump; ``Made`` is the answer."""

    TYPE: ClassVar[int] = 3
    FIELDS: ClassVar[tuple[Check, ...]] = (U32, blob(MAX_PATH_BYTES))
    number: int
    path: bytes


@fact
class Made:
    """To the control process: the file comes with this, or there is a reason why there is none."""

    TYPE: ClassVar[int] = 34
    FIELDS: ClassVar[tuple[Check, ...]] = (U32, text(MAX_REASON_CHARS))
    number: int
    reason: str


@fact
class Restricted:
    """To the control process: the rules are in force, or the reason why they are not."""

    TYPE: ClassVar[int] = 33
    FIELDS: ClassVar[tuple[Check, ...]] = (text(MAX_REASON_CHARS),)
    reason: str


@fact
class NotOpened:
    """To the control process: nothing was ordered for this place."""

    TYPE: ClassVar[int] = 32
    FIELDS: ClassVar[tuple[Check, ...]] = (U32, text(MAX_REASON_CHARS))
    place: int
    reason: str


OPENER_CODEC: Final = Codec((Open, Restrict, Make))
FROM_OPENER_CODEC: Final = Codec((NotOpened, Restricted, Made, *CHILD_MESSAGES))
