# SPDX-License-Identifier: BSD-3-Clause
"""The control message about network cards."""

from __future__ import annotations

from crosvm_py.requests.protocol import Done
from sys_util.facts import fact
from sys_util.typing import TYPE_CHECKING, ClassVar
from sys_util.wire import boolean, text

if TYPE_CHECKING:
    from sys_util.wire import Check, Message


@fact
class SetLink:
    """Pull a network card's cable, or put it back. ``Done`` means that this has taken effect."""

    TYPE: ClassVar[int] = 24
    FIELDS: ClassVar[tuple[Check, ...]] = (text(64), boolean)
    ANSWER: ClassVar[type[Message]] = Done
    device: str
    up: bool
