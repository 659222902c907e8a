# SPDX-License-Identifier: BSD-3-Clause
"""The messages from the process that reads a kernel file to the vmm; none go the other way.

It sends up to ``MAX_LINES`` times ``Line``, then one of the others. The unpacked kernel is in a
file that the vmm made.
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
from sys_util.wire import U32, U64, Codec, blob, choice, integer, record, sequence, text

if TYPE_CHECKING:
    from sys_util.wire import Check

# To read one kernel. The largest ones take a second, or 20 seconds on an emulated processor.
MAX_PROCESSOR_SECONDS: Final = 120

# The parser logs at most one line about a file, and one about each ELF note in it.
MAX_LINES: Final = 16
MAX_REASON_CHARS: Final = 2048
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
class Refused:
    """The file is no kernel for this machine. The reason is appended to the name of the file."""

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

CODEC: Final = Codec((Line, Parsed, Refused, HostFailed, Crashed, CallDenied))
