# SPDX-License-Identifier: BSD-3-Clause
"""Messages between processes: facts that are sent as msgpack arrays.

A message is ``[type, field, ...]``. Each class says with ``TYPE`` and ``FIELDS`` what it accepts.
``decode`` refuses everything else: an unknown type, another number of fields, a value of the wrong
type, size, depth or range. It never converts a value of a wrong type, and runs no code from a
message.
"""

from __future__ import annotations

from sys_util import msgpack
from sys_util.errors import ProtocolError
from sys_util.facts import fields_of
from sys_util.stranger import brief, judged, unpack
from sys_util.typing import TYPE_CHECKING, ClassVar, Final, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

# Larger than our largest messages: 64 queues with their addresses, or a long traceback.
MAX_MESSAGE_BYTES: Final = 64 * 1024


class Message(Protocol):
    """What every message class declares."""

    TYPE: ClassVar[int]
    FIELDS: ClassVar[tuple[Check, ...]]


class Check(Protocol):
    """A function that returns a value, perhaps converted, if a field may have it.

    Raises:
        ProtocolError: the field may not have it.
    """

    def __call__(self, value: object, /) -> object:
        """Check ``value``."""


def integer(low: int, high: int) -> Check:
    """Accept a whole number in ``low..high``."""

    def check(value: object) -> object:
        if type(value) is not int or not low <= value <= high:
            raise ProtocolError(f"{brief(value)} is not a whole number in {low}..{high:#x}")
        return value

    return check


U16: Final = integer(0, 0xFFFF)
U32: Final = integer(0, 0xFFFF_FFFF)
U64: Final = integer(0, 0xFFFF_FFFF_FFFF_FFFF)
I32: Final = integer(-0x8000_0000, 0x7FFF_FFFF)


def boolean(value: object) -> object:
    """Accept true or false, but no number."""
    if type(value) is not bool:
        raise ProtocolError(f"{brief(value)} is not a boolean")
    return value


def text(max_chars: int) -> Check:
    """Accept a string of at most ``max_chars``."""

    def check(value: object) -> object:
        if type(value) is not str or len(value) > max_chars:
            raise ProtocolError(f"{brief(value)} is not a string of up to {max_chars} characters")
        return value

    return check


def choice(values: Sequence[str]) -> Check:
    """Accept one of these strings."""

    def check(value: object) -> object:
        if type(value) is not str or value not in values:
            raise ProtocolError(f"{brief(value)} is not one of {len(values)} words")
        return value

    return check


def blob(max_bytes: int) -> Check:
    """Accept at most ``max_bytes`` bytes."""

    def check(value: object) -> object:
        if type(value) is not bytes or len(value) > max_bytes:
            raise ProtocolError(f"{brief(value)} is not a byte string of up to {max_bytes:#x}")
        return value

    return check


def optional(item: Check) -> Check:
    """Accept nil or what ``item`` accepts."""

    def check(value: object) -> object:
        return None if value is None else item(value)

    return check


def sequence(item: Check, max_items: int) -> Check:
    """Accept an array of up to ``max_items``; it becomes a tuple."""

    def check(value: object) -> object:
        if type(value) is not list or len(value) > max_items:
            raise ProtocolError(f"{brief(value)} is not an array of up to {max_items}")
        return tuple(item(element) for element in value)

    return check


def record(build: Callable[..., object], *fields: Check) -> Check:
    """Accept an array with exactly these fields and hand them to ``build``."""

    def check(value: object) -> object:
        if type(value) is not list or len(value) != len(fields):
            raise ProtocolError(f"{brief(value)} is not an array of {len(fields)}")
        return build(*(field(element) for field, element in zip(fields, value, strict=True)))

    return check


def encode(message: Message) -> bytes:
    """Return the message as bytes.

    A text may contain a file name that is not UTF-8: what cannot be encoded is sent as escapes.
    """
    values = _as_array(message)
    try:
        return msgpack.packb(values, default=_as_array)
    except UnicodeEncodeError:
        return msgpack.packb(values, default=_as_array, unicode_errors="backslashreplace")


def _as_array(message: Message) -> list[object]:
    """Return the array that is sent for a message, which may be a field of another one."""
    return [message.TYPE, *fields_of(message).values()]


class Codec:
    """The messages that one side of a channel may receive."""

    def __init__(self, messages: Iterable[type[Message]]) -> None:
        """Accept ``messages``.

        Raises:
            ValueError: two of them have one number, so that one would hide the other.
        """
        self._types: dict[int, type[Message]] = {}
        for message in messages:
            other = self._types.setdefault(message.TYPE, message)
            if other is not message:
                raise ValueError(
                    f"{other.__name__} and {message.__name__} both have the number {message.TYPE}"
                )

    def decode(self, payload: bytes) -> Message:
        """Build the message from ``payload``.

        Raises:
            ProtocolError: it is no message that this side accepts.
        """
        if len(payload) > MAX_MESSAGE_BYTES:
            raise ProtocolError(f"message of {len(payload):#x} bytes")
        return self.build(unpack(payload))

    def build(self, fields: object) -> Message:
        """Build the message from an array of its type and its fields.

        Raises:
            ProtocolError: it is no message that this side accepts.
        """
        if type(fields) is not list or not fields or type(fields[0]) is not int:
            raise ProtocolError("message is not an array that begins with its type")
        kind = self._types.get(fields[0])
        if kind is None:
            raise ProtocolError(f"message of unknown type {fields[0]}")
        if len(fields) - 1 != len(kind.FIELDS):
            raise ProtocolError(f"{kind.__name__} with {len(fields) - 1} fields")
        return judged(kind.__name__, _build, kind, fields[1:])


def nested(codec: Codec) -> Check:
    """Accept a message that ``codec`` accepts, as an array inside another message."""

    def check(value: object) -> object:
        return codec.build(value)

    return check


def _build(kind: type[Message], values: Sequence[object]) -> Message:
    checked = [check(value) for check, value in zip(kind.FIELDS, values, strict=True)]
    build: Callable[..., Message] = kind
    return build(*checked)
