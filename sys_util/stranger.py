# SPDX-License-Identifier: BSD-3-Clause
"""Unpack and describe values that strangers send, within bounds.

A stranger is any process that the reader does not trust: a device process for the vmm, the vmm for
the warden, a client of the control socket, a process that left its saved state behind. Nothing that
it sends may raise an unexpected exception in the process that reads it. Therefore every such value
is unpacked here, every message that mentions one describes it with ``brief``, and code that acts on
one is called through ``judged``.
"""

from __future__ import annotations

from sys_util import msgpack
from sys_util.errors import ChannelClosed, ProtocolError, VmmError
from sys_util.log import get_logger
from sys_util.typing import TYPE_CHECKING, Final, NoReturn, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

T = TypeVar("T")

# How deep arrays and maps may be nested. Our own messages need four levels.
MAX_DEPTH: Final = 8

_BRIEF_CHARS: Final = 40
_BRIEF_BITS: Final = 128

# The first byte of a value tells its format (msgpack specification, "Formats"). These are the first
# bytes of arrays and maps.
_CONTAINERS: Final = bytes((*range(0x80, 0xA0), *range(0xDC, 0xE0)))

# What follows the first byte of each format, as four numbers:
# - the width in bytes of a count that follows; 0: the next number is the count,
# - the count, if no count follows,
# - how many bytes to skip before the content,
# - what is counted: 0 for bytes, 1 for the items of an array, 2 for the pairs of a map.
_ONE_BYTE: Final = (0, 0, 0, 0)  # nothing follows: the value is its first byte
_ROWS: Final[tuple[tuple[int, Iterable[tuple[int, int, int, int]]], ...]] = (
    (0x80, ((0, count, 0, 2) for count in range(16))),  # maps
    (0x90, ((0, count, 0, 1) for count in range(16))),  # arrays
    (0xA0, ((0, count, 0, 0) for count in range(32))),  # strings
    (0xC4, ((1, 0, 0, 0), (2, 0, 0, 0), (4, 0, 0, 0))),  # byte strings
    (0xC7, ((1, 0, 1, 0), (2, 0, 1, 0), (4, 0, 1, 0))),  # extensions, after a byte for the type
    (0xCA, ((0, 4, 0, 0), (0, 8, 0, 0))),  # floats
    (0xCC, ((0, 1 << power, 0, 0) for power in range(4))),  # unsigned integers
    (0xD0, ((0, 1 << power, 0, 0) for power in range(4))),  # signed integers
    (0xD4, ((0, 1 << power, 1, 0) for power in range(5))),  # extensions of a fixed size
    (0xD9, ((1, 0, 0, 0), (2, 0, 0, 0), (4, 0, 0, 0))),  # strings
    (0xDC, ((2, 0, 0, 1), (4, 0, 0, 1), (2, 0, 0, 2), (4, 0, 0, 2))),  # arrays, then maps
)
_SHAPES: Final = {first + at: shape for first, shapes in _ROWS for at, shape in enumerate(shapes)}

_log = get_logger("sys_util.stranger").limited(burst=64, seconds=60.0)


def brief(value: object) -> str:
    """Describe any value in a few words, in bounded time and without raising an exception."""
    if type(value) is str or type(value) is bytes:
        shown = repr(value[:_BRIEF_CHARS])
        return shown if len(value) <= _BRIEF_CHARS else f"{shown}… ({len(value)} long)"
    if type(value) is list or type(value) is tuple:
        return f"an array of {len(value)}"
    if type(value) is dict:
        return f"a map of {len(value)}"
    if type(value) is int and value.bit_length() > _BRIEF_BITS:
        return f"a number of {value.bit_length()} bits"
    if value is None or type(value) in (bool, int, float):
        return repr(value)
    return f"a value of type {type(value).__name__}"


def unpack(data: bytes) -> object:
    """Return the one value in ``data``, which is nested at most ``MAX_DEPTH`` deep.

    Raises:
        ProtocolError: ``data`` is not exactly one value, or one that no message of ours has.
    """
    try:
        _check_depth(data)
        return msgpack.unpackb(data, use_list=True, strict_map_key=True, ext_hook=_refuse)
    except ProtocolError:
        raise
    except Exception as error:  # of whatever class: only the data can be its cause
        raise ProtocolError("data that is not msgpack") from error


def unpack_fields(data: bytes) -> dict[str, object]:
    """Return a map of named values. The caller checks the values.

    Raises:
        ProtocolError: ``data`` is no such map.
    """
    fields = unpack(data)
    if type(fields) is not dict or not all(type(name) is str for name in fields):
        raise ProtocolError("fields without names")
    return fields


def judged(what: str, act: Callable[..., T], *args: object) -> T:
    """Return ``act(*args)``, where ``args`` come from a stranger, who is blamed if it fails.

    An unexpected exception is also a bug of ours, so its stack is logged.

    Raises:
        VmmError: ``act`` raised it, or any other exception, which becomes a ``ProtocolError``.
        ChannelClosed: ``act`` raised it.
    """
    try:
        return act(*args)
    except (VmmError, ChannelClosed):
        raise
    except Exception as error:
        _report(what, error)
        raise ProtocolError(f"{what}: {type(error).__name__}") from error


def _report(what: str, error: Exception) -> None:
    _log.exception(error, "%s could not be used", what)


def _refuse(_kind: int, _data: bytes) -> NoReturn:
    raise ProtocolError("an extension type")


def _check_depth(data: bytes) -> None:
    """Refuse values that are nested too deep, before msgpack builds them.

    Most messages contain so few bytes that could begin an array or a map that they cannot be nested
    too deep. In other messages we visit each value once. Data that is not msgpack may pass here;
    unpacking refuses it.
    """
    if len(data) - len(data.translate(None, _CONTAINERS)) > MAX_DEPTH:
        _visit_values(data)


def _visit_values(data: bytes) -> None:
    at, end = 0, len(data)
    missing = [1]  # for each array and map that we are in, how many values are still to come
    while at < end:
        missing[-1] -= 1
        width, count, skip, values = _SHAPES.get(data[at], _ONE_BYTE)
        at += 1
        if width:
            count = int.from_bytes(data[at : at + width], "big")
        at += width + skip
        if not values:
            at += count
        elif len(missing) > MAX_DEPTH:
            raise ProtocolError(f"arrays and maps more than {MAX_DEPTH} deep")
        else:
            missing.append(values * count)
        while not missing[-1]:
            missing.pop()
            if not missing:
                return
