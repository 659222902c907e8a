# SPDX-License-Identifier: BSD-3-Clause
"""The messages between a spare warden and the monitor of the pool that has forked it.

``Adopt`` is the first and only message of its kind: behind it the channel has the messages of
``crosvm_py/warden/protocol.py``. So a guest that has taken over the vmm cannot send it.
"""

from __future__ import annotations

from sys_util.facts import fact
from sys_util.log import DEBUG, OFF
from sys_util.typing import TYPE_CHECKING, ClassVar, Final, NamedTuple
from sys_util.wire import U64, Codec, blob, boolean, integer, optional, record, sequence, text

if TYPE_CHECKING:
    from sys_util.wire import Check

MAX_SOCKETS: Final = 64
MAX_EXCEPTIONS: Final = 64
_MAX_PATH_BYTES: Final = 4096
_LEVEL: Final = integer(OFF, DEBUG)


class SocketFile(NamedTuple):
    """A socket in the file system that the warden removes at the end: an absolute path."""

    path: bytes
    dev: int
    ino: int


class LogException(NamedTuple):
    """A level of the log for a part of the program."""

    module: str
    level: int


@fact
class Adopt:
    """To a spare warden: serve the vmm that sends this, as if it had forked you now.

    The descriptors are stderr, then with ``has_orders`` the channel from the opener, then with a
    ``syslog_tag`` the pipe for syslog. ``kinds`` are those of the run, ``warden`` is the
    name of the warden's filter in it, and ``policies`` are those of filters that devices may need.
    """

    TYPE: ClassVar[int] = 1
    FIELDS: ClassVar[tuple[Check, ...]] = (
        *(sequence(text(32), 64), text(64), sequence(text(64), 64)),
        sequence(record(SocketFile, blob(_MAX_PATH_BYTES), U64, U64), MAX_SOCKETS),
        *(_LEVEL, sequence(record(LogException, text(64), _LEVEL), MAX_EXCEPTIONS)),
        *(optional(text(128)), boolean),
    )
    kinds: tuple[str, ...]
    warden: str
    policies: tuple[str, ...]
    sockets: tuple[SocketFile, ...]
    log_level: int
    log_exceptions: tuple[LogException, ...]
    syslog_tag: str | None
    has_orders: bool

    @property
    def fds(self) -> int:
        """How many descriptors come with it."""
        return 1 + self.has_orders + (self.syslog_tag is not None)


@fact
class Waiting:
    """From a spare warden: it and its devices wait for their VM."""

    TYPE: ClassVar[int] = 2
    FIELDS: ClassVar[tuple[Check, ...]] = ()


SPARE_CODEC: Final = Codec((Adopt,))  # what a spare warden may receive
MONITOR_CODEC: Final = Codec((Waiting,))  # and its monitor
