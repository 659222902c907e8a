# SPDX-License-Identifier: BSD-3-Clause
"""Requests about the whole VM that the REST API needs beside those about its life."""

from __future__ import annotations

from crosvm_py.requests.protocol import Done
from sys_util.facts import fact
from sys_util.typing import TYPE_CHECKING, ClassVar, Final, NamedTuple
from sys_util.wire import U16, U32, U64, choice, record, sequence, text

if TYPE_CHECKING:
    from sys_util.wire import Check, Message

# No VM yet; its guest runs; it is held still; it was shut down and can boot again; it has ended and
# cannot be started again.
WAITING: Final = "waiting"
RUNNING: Final = "running"
SUSPENDED: Final = "suspended"
HALTED: Final = "halted"
ENDED: Final = "ended"

_MAX_VCPUS: Final = 1024
_MAX_PTYS: Final = 32


class PortPty(NamedTuple):
    """The pseudo-terminal of a port: where it is in the machine, and its path on the host."""

    place: str
    path: str


@fact
class VmFacts:
    """The answer to ``QueryVm``: state, vCPUs, and memory without what the balloon may hold.

    vCPUs that the guest has been asked to let go do not count. ``ptys`` are the pseudo-terminals of
    ports: place and path.
    """

    TYPE: ClassVar[int] = 100
    FIELDS: ClassVar[tuple[Check, ...]] = (
        choice((WAITING, RUNNING, SUSPENDED, HALTED, ENDED)),
        *(U32, U64, sequence(record(PortPty, text(32), text(128)), _MAX_PTYS)),
    )
    state: str
    cpus: int
    memory_bytes: int
    ptys: tuple[PortPty, ...] = ()


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


class VcpuFigures(NamedTuple):
    """One vCPU: its thread, and how often it has left the guest to be served by the vmm."""

    index: int  # type: ignore[assignment]  # hides tuple.index(), which nobody needs here
    thread_id: int
    exits: int


@fact
class VcpuList:
    """The answer to ``ListVcpus``: every vCPU, by index."""

    TYPE: ClassVar[int] = 110
    FIELDS: ClassVar[tuple[Check, ...]] = (
        sequence(record(VcpuFigures, U16, U32, U64), _MAX_VCPUS),
    )
    vcpus: tuple[VcpuFigures, ...]


@fact
class ListVcpus:
    """Return what the vCPUs did. No vCPU is stopped for it."""

    TYPE: ClassVar[int] = 60
    FIELDS: ClassVar[tuple[Check, ...]] = ()
    ANSWER: ClassVar[type[Message]] = VcpuList
