# SPDX-License-Identifier: BSD-3-Clause
"""The messages between the vmm, the control process and its keeper.

The keeper tells the vmm of each control process that it starts, and sends the vmm's end of a
channel with it. Through that channel the control process passes on the requests of its clients.
Neither of the two trusts the other: a client may have taken over the control process, and a guest
the vmm.
"""

from __future__ import annotations

from crosvm_py.requests.protocol import MAX_REQUEST_BYTES
from sys_util.child_log import CHILD_MESSAGES
from sys_util.facts import fact
from sys_util.typing import TYPE_CHECKING, ClassVar, Final, NamedTuple
from sys_util.wire import MAX_MESSAGE_BYTES, U32, Codec, blob, integer

if TYPE_CHECKING:
    from sys_util.wire import Check

# The largest encoded answer, so that it fits into a message with its number.
MAX_ANSWER_BYTES: Final = MAX_MESSAGE_BYTES - 64

# The most requests that wait for answers at a time. A client that has gone leaves its own behind,
# so there can be more of them than clients.
MAX_REQUESTS: Final = 64


@fact
class Ask:
    """To the vmm: a request of a client, encoded. ``number`` is in the answer again."""

    TYPE: ClassVar[int] = 1
    FIELDS: ClassVar[tuple[Check, ...]] = (U32, blob(MAX_REQUEST_BYTES))
    number: int
    request: bytes


@fact
class Answered:
    """To the control process: the answer to the request with this number, encoded."""

    TYPE: ClassVar[int] = 2
    FIELDS: ClassVar[tuple[Check, ...]] = (U32, blob(MAX_ANSWER_BYTES))
    number: int
    answer: bytes


@fact
class Serving:
    """From the keeper to the vmm: process ``pid`` serves clients. Comes with one channel to it."""

    TYPE: ClassVar[int] = 64
    FIELDS: ClassVar[tuple[Check, ...]] = (integer(1, 1 << 22),)
    pid: int


class ControlFds(NamedTuple):
    """The descriptors that a control process inherits, beside the standard ones; -1 for none.

    Args:
        channel: the channel to the vmm.
        listening: the control socket.
        policy: a file with the filter of the process.
        api: the socket of the REST API.
        store: the file with the configuration (``crosvm_py.api.store``), if there is an API.
        orders: the opener's channel to the warden, which the keeper keeps for the next opener.
        opener_policy: a file with the filter of the opener.
        rules: a Landlock ruleset for the opener.
        boots: no descriptor: 1 if clients of the API create the VM and boot it, otherwise 0.
    """

    channel: int = -1
    listening: int = -1
    policy: int = -1
    api: int = -1
    store: int = -1
    orders: int = -1
    opener_policy: int = -1
    rules: int = -1
    boots: int = 0

    def as_word(self) -> str:
        """Return them as an argument of the command line."""
        return ",".join(map(str, self))

    @classmethod
    def read(cls, word: str) -> ControlFds:
        """Undo ``as_word``."""
        return cls(*map(int, word.split(",")))

    def used(self) -> frozenset[int]:
        """Return those that there are."""
        return frozenset(fd for fd in self[: ControlFds._fields.index("boots")] if fd >= 0)


FROM_KEEPER_CODEC: Final = Codec((Serving,))
FROM_CONTROL_CODEC: Final = Codec((Ask, *CHILD_MESSAGES))
CONTROL_CODEC: Final = Codec((Answered,))
