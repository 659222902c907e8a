# SPDX-License-Identifier: BSD-3-Clause
"""The control message that changes the size of a running VM."""

from __future__ import annotations

from sys_util.facts import fact
from sys_util.typing import TYPE_CHECKING, ClassVar
from sys_util.wire import U32, U64, boolean, optional

if TYPE_CHECKING:
    from sys_util.wire import Check, Message


@fact
class Resized:
    """The answer to ``Resize``.

    If ``is_busy``, nothing was changed: the guest has not yet let go of the vCPUs that an earlier
    request took from it.
    """

    TYPE: ClassVar[int] = 116
    FIELDS: ClassVar[tuple[Check, ...]] = (boolean,)
    is_busy: bool


@fact
class Resize:
    """Change the number of vCPUs, the size of memory and that of the balloon.

    ``None`` leaves a size as it is. The answer does not wait for the guest. If one part is
    impossible, nothing is changed.
    """

    TYPE: ClassVar[int] = 90
    FIELDS: ClassVar[tuple[Check, ...]] = (optional(U32), optional(U64), optional(U64))
    ANSWER: ClassVar[type[Message]] = Resized
    cpus: int | None = None
    memory_bytes: int | None = None
    balloon_bytes: int | None = None
