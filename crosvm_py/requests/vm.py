# SPDX-License-Identifier: BSD-3-Clause
"""Requests about the whole VM that the REST API needs beside those about its life."""

from __future__ import annotations

from crosvm_py.requests.protocol import Done
from sys_util.facts import fact
from sys_util.typing import TYPE_CHECKING, ClassVar, Final
from sys_util.wire import U32, U64, choice

if TYPE_CHECKING:
    from sys_util.wire import Check, Message

# No VM yet; its guest runs; it is held still; it has ended and cannot be started again.
WAITING: Final = "waiting"
RUNNING: Final = "running"
SUSPENDED: Final = "suspended"
ENDED: Final = "ended"


@fact
class VmFacts:
    """The answer to ``QueryVm``: state, vCPUs, and memory without what the balloon may hold."""

    TYPE: ClassVar[int] = 100
    FIELDS: ClassVar[tuple[Check, ...]] = (choice((WAITING, RUNNING, SUSPENDED, ENDED)), U32, U64)
    state: str
    cpus: int
    memory_bytes: int


@fact
class QueryVm:
    """Return the state of the VM."""

    TYPE: ClassVar[int] = 40
    FIELDS: ClassVar[tuple[Check, ...]] = ()
    ANSWER: ClassVar[type[Message]] = VmFacts


@fact
class InjectNmi:
    """Send every vCPU a non-maskable interrupt."""

    TYPE: ClassVar[int] = 41
    FIELDS: ClassVar[tuple[Check, ...]] = ()
    ANSWER: ClassVar[type[Message]] = Done
