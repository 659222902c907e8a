# SPDX-License-Identifier: BSD-3-Clause
"""The messages between control clients and a VM, as msgpack arrays.

A client sends a request and gets one answer. More requests may follow on the same connection,
one at a time. Numbers are never reused; a VM that is too old for a request answers ``Failed``.

A request is a message with ``ANSWER``, the class of its answer unless it fails. ``catalogue`` finds
all requests in the modules of this folder.
"""

from __future__ import annotations

from sys_util.facts import fact
from sys_util.typing import TYPE_CHECKING, ClassVar, Final, Protocol, TypeAlias
from sys_util.wire import Message, text

if TYPE_CHECKING:
    from sys_util.wire import Check

MAX_REQUEST_BYTES: Final = 4096
MAX_RESPONSE_BYTES: Final = 64 * 1024
MAX_REASON_CHARS: Final = 1024


class Request(Protocol):
    """What the class of every request declares."""

    TYPE: ClassVar[int]
    FIELDS: ClassVar[tuple[Check, ...]]
    ANSWER: ClassVar[type[Message]]


Response: TypeAlias = Message


@fact
class Done:
    """The request was carried out."""

    TYPE: ClassVar[int] = 64
    FIELDS: ClassVar[tuple[Check, ...]] = ()


@fact
class Failed:
    """The request was not carried out; ``reason`` is one line for people."""

    TYPE: ClassVar[int] = 65
    FIELDS: ClassVar[tuple[Check, ...]] = (text(MAX_REASON_CHARS),)
    reason: str
