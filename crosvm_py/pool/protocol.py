# SPDX-License-Identifier: BSD-3-Clause
"""What a client, the pool and a monitor send each other, over SOCK_SEQPACKET (unix(7)).

A client connects to the pool's socket and sends ``Run`` with its descriptors. The pool reads none
of that: it passes the connection to a monitor that waits, which answers ``Started`` or
``Declined``, and at the end ``Ended``. If a signal kills the monitor, the pool sends ``Killed``.

The client in Rust (``launcher/src/wire.rs``) writes and reads the same messages.
"""

from __future__ import annotations

from crosvm_py.vmm.prepared_kernel import PreparedKernel
from sys_util.facts import fact
from sys_util.typing import TYPE_CHECKING, ClassVar, Final
from sys_util.wire import Codec, blob, integer, sequence, text

if TYPE_CHECKING:
    from sys_util.wire import Check, Message

# The variables of the caller's environment that a run keeps (crosvm_py/inherited.py).
MAX_VARIABLES: Final = 16
# As many as a channel passes on (sys_util/channel.py).
MAX_FDS: Final = 130
MAX_WORDS: Final = 4096
MAX_REASON_CHARS: Final = 512
_MAX_BYTES: Final = 60 * 1024
_MAX_FD: Final = 1 << 20


@fact
class Run:
    """A client's order for a VM: its program's version, command line, environment, descriptors.

    ``fds`` has the number that each descriptor beside the message has in the client.
    """

    TYPE: ClassVar[int] = 1
    FIELDS: ClassVar[tuple[Check, ...]] = (
        text(64),
        sequence(blob(_MAX_BYTES), MAX_WORDS),
        sequence(blob(_MAX_BYTES), MAX_VARIABLES),
        sequence(integer(0, _MAX_FD), MAX_FDS),
    )
    version: str
    words: tuple[bytes, ...]
    environment: tuple[bytes, ...]  # each NAME=value
    fds: tuple[int, ...]


@fact
class Started:
    """A monitor's answer: it runs the VM from now on; a pidfd of it comes with the message."""

    TYPE: ClassVar[int] = 2
    FIELDS: ClassVar[tuple[Check, ...]] = ()


@fact
class Declined:
    """The pool's or a monitor's answer: nothing was started, for this reason."""

    TYPE: ClassVar[int] = 3
    FIELDS: ClassVar[tuple[Check, ...]] = (text(MAX_REASON_CHARS),)
    reason: str


@fact
class Ended:
    """A monitor's last message: the exit status of the run."""

    TYPE: ClassVar[int] = 4
    FIELDS: ClassVar[tuple[Check, ...]] = (integer(0, 255),)
    status: int


@fact
class Killed:
    """The pool's last message: this signal killed the monitor."""

    TYPE: ClassVar[int] = 5
    FIELDS: ClassVar[tuple[Check, ...]] = (integer(1, 64),)
    signal: int


@fact
class Ready:
    """A monitor to the pool: it waits for a client."""

    TYPE: ClassVar[int] = 10
    FIELDS: ClassVar[tuple[Check, ...]] = ()


@fact
class Taken:
    """A monitor to the pool: it runs the VM of its client, so the pool needs another monitor."""

    TYPE: ClassVar[int] = 11
    FIELDS: ClassVar[tuple[Check, ...]] = ()


@fact
class Serve:
    """The pool to a monitor: serve the client whose connection comes with the message."""

    TYPE: ClassVar[int] = 12
    FIELDS: ClassVar[tuple[Check, ...]] = ()


_ANSWERS: Final[tuple[type[Message], ...]] = (Started, Declined, Ended, Killed)

CLIENT_CODEC: Final = Codec(_ANSWERS)  # what a client may receive
ORDER_CODEC: Final = Codec((Run,))  # what a monitor may receive of its client
MONITOR_CODEC: Final = Codec((Serve, PreparedKernel))  # and of the pool
POOL_CODEC: Final = Codec((Ready, Taken))  # what the pool may receive of a monitor
