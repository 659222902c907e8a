# SPDX-License-Identifier: BSD-3-Clause
"""The messages from a process that reads one file to the one that made it; none go the other way.

It sends up to ``MAX_LINES`` times ``Line``, then one of the others. What is too long for a message,
such as an unpacked kernel, is in a file in memory that the other process made.
"""

from __future__ import annotations

from kernel_loader.image import (
    KINDS,
    MAX_SEGMENTS,
    MAX_SETUP_HEADER_BYTES,
    MAX_UNPACKED_BYTES,
    PROTOCOLS,
    ParsedKernel,
    Segment,
)
from sys_util.facts import fact
from sys_util.typing import TYPE_CHECKING, ClassVar, Final
from sys_util.wire import U32, U64, Codec, blob, choice, integer, optional, record, sequence, text

if TYPE_CHECKING:
    from sys_util.wire import Check

# To read one file. The largest kernels take a second, or 20 seconds on an emulated processor.
MAX_PROCESSOR_SECONDS: Final = 120

# The parser logs at most one line about a file, and one about each ELF note in it.
MAX_LINES: Final = 16
MAX_REASON_CHARS: Final = 2048
# Of a configuration, whose JSON text has a bound of its own (vm_config/json_text.py).
MAX_CONVERTED_BYTES: Final = 16 << 20
MAX_LINE_CHARS: Final = 4096

_MODULE_CHARS: Final = 64


_SEGMENT: Final = record(Segment, U64, U64, U64, U64)


@fact
class Line:
    """A line for the log."""

    TYPE: ClassVar[int] = 1
    FIELDS: ClassVar[tuple[Check, ...]] = (integer(1, 4), text(_MODULE_CHARS), text(MAX_LINE_CHARS))
    level: int
    module: str
    line: str


@fact
class Parsed:
    """The file is a kernel; ``kernel`` says how to load it."""

    TYPE: ClassVar[int] = 2
    FIELDS: ClassVar[tuple[Check, ...]] = (
        record(
            ParsedKernel,
            choice(KINDS),
            choice(PROTOCOLS),
            U64,
            sequence(_SEGMENT, MAX_SEGMENTS),
            blob(MAX_SETUP_HEADER_BYTES),
            U32,
            U32,
            integer(0, MAX_UNPACKED_BYTES),
        ),
    )
    kernel: ParsedKernel


@fact
class GuestFound:
    """The file is the description of a guest: names of files, and kernel parameters."""

    TYPE: ClassVar[int] = 7
    FIELDS: ClassVar[tuple[Check, ...]] = (
        text(MAX_REASON_CHARS),
        *(optional(text(MAX_REASON_CHARS)),) * 3,
        text(MAX_REASON_CHARS),
    )
    kernel: str
    initrd: str | None
    root: str | None
    rwroot: str | None
    params: str


@fact
class Converted:
    """The file is a configuration; so many bytes of msgpack are in the file in memory."""

    TYPE: ClassVar[int] = 8
    FIELDS: ClassVar[tuple[Check, ...]] = (integer(0, MAX_CONVERTED_BYTES),)
    size_bytes: int


@fact
class Unfit:
    """The file is no configuration: what is wrong in it, and where."""

    TYPE: ClassVar[int] = 9
    FIELDS: ClassVar[tuple[Check, ...]] = (text(MAX_REASON_CHARS), text(MAX_REASON_CHARS))
    place: str
    reason: str


@fact
class Refused:
    """The file is not what it should be. The reason is appended to the name of the file."""

    TYPE: ClassVar[int] = 3
    FIELDS: ClassVar[tuple[Check, ...]] = (text(MAX_REASON_CHARS),)
    reason: str


@fact
class HostFailed:
    """The host refused an operation, with this errno; ``hint`` says what can be done about it."""

    TYPE: ClassVar[int] = 4
    FIELDS: ClassVar[tuple[Check, ...]] = (
        text(64),
        text(MAX_REASON_CHARS),
        integer(1, 4095),
        text(MAX_REASON_CHARS),
    )
    operation: str
    target: str
    error: int
    hint: str = ""


@fact
class Crashed:
    """The parser has a bug; ``report`` has the traceback."""

    TYPE: ClassVar[int] = 5
    FIELDS: ClassVar[tuple[Check, ...]] = (text(MAX_REASON_CHARS),)
    report: str


@fact
class CallDenied:
    """The last message: the filter trapped the system call with this number."""

    TYPE: ClassVar[int] = 6
    FIELDS: ClassVar[tuple[Check, ...]] = (U32,)
    number: int


# What the SIGSYS handler writes before the call's number: the header of a msgpack array, the type.
CALL_DENIED_HEAD: Final = bytes([0x92, CallDenied.TYPE])

CODEC: Final = Codec(
    (Line, Parsed, GuestFound, Converted, Unfit, Refused, HostFailed, Crashed, CallDenied)
)
