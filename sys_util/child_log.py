# SPDX-License-Identifier: BSD-3-Clause
"""What a confined child says to its parent beside its work: lines for the log, and last words.

It has no log of its own, and no file to write one to. A codec whose child may say these has
``CHILD_MESSAGES`` in it; no other message of such a codec has one of their types.
"""

from __future__ import annotations

from sys_util import log
from sys_util.errors import ChannelClosed, ProtocolError
from sys_util.facts import fact
from sys_util.typing import TYPE_CHECKING, ClassVar, Final
from sys_util.wire import U16, U32, text

if TYPE_CHECKING:
    from sys_util.channel import Channel
    from sys_util.wire import Check

MAX_REPORT_CHARS: Final = 8192

_MODULE_CHARS: Final = 128
_LINE_CHARS: Final = 4096


@fact
class LogLine:
    """A line for the log."""

    TYPE: ClassVar[int] = 36
    FIELDS: ClassVar[tuple[Check, ...]] = (U16, text(_MODULE_CHARS), text(_LINE_CHARS))
    level: int
    module: str
    line: str


@fact
class CallDenied:
    """The last message: the filter trapped a system call. Sent by the handler of SIGSYS."""

    TYPE: ClassVar[int] = 37
    FIELDS: ClassVar[tuple[Check, ...]] = (U32,)
    number: int


@fact
class Crashed:
    """The last message: a bug of ours, or an error of the host, ends the process."""

    TYPE: ClassVar[int] = 38
    FIELDS: ClassVar[tuple[Check, ...]] = (text(MAX_REPORT_CHARS),)
    report: str


CHILD_MESSAGES: Final = (LogLine, CallDenied, Crashed)

# What the SIGSYS handler, which can build nothing, writes before the call's number: the header of
# a msgpack array, the type.
CALL_DENIED_HEAD: Final = bytes([0x92, CallDenied.TYPE])

# What the engine writes before the text of its report when it panics.
CRASHED_HEAD: Final = bytes([0x92, Crashed.TYPE])


def log_through(channel: Channel) -> None:
    """Send every line of this process's log to the parent."""

    def sink(level: int, module: str, line: str) -> None:
        _say(channel, LogLine(level, module[:_MODULE_CHARS], line[:_LINE_CHARS]))

    log.set_sink(sink)


def say_crashed(channel: Channel, report: str) -> None:
    """Tell the parent why this process ends."""
    _say(channel, Crashed(report[:MAX_REPORT_CHARS]))


def _say(channel: Channel, message: LogLine | Crashed) -> None:
    try:
        channel.send(message)
    except (ChannelClosed, ProtocolError):
        return  # the parent has ended or does not keep up; losing a log line does no harm
