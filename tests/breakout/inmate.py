# SPDX-License-Identifier: BSD-3-Clause
"""Devices that run an attacker's code, in the processes that the real warden makes.

Each kind is built by its own builder, from its own descriptors, in its own jail and under its own
policy. Only the code that answers commands of the vmm, after the filter is loaded, is replaced.
"""

from __future__ import annotations

import os
import stat
from contextlib import contextmanager
from typing import TYPE_CHECKING, ClassVar, Final
from unittest import mock

import msgpack

from crosvm_py.kinds.table import DEVICE_KINDS
from devices.virtio.commands import ANSWERS, COMMANDS, Command
from sys_util import linux
from sys_util.child_log import CALL_DENIED_HEAD
from sys_util.facts import fact
from sys_util.stranger import unpack_fields
from sys_util.vhost import Vhost
from sys_util.wire import U32, Check, Message, blob, sequence, text
from tests.breakout import hands, lies
from tests.breakout.attempt import Attempt, Cell
from tests.breakout.hands import Refused
from tests.breakout.table import ATTEMPTS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from crosvm_py.kinds.kind import DeviceKind
    from devices.virtio.context import DeviceContext
    from devices.virtio.device import VirtioDevice


EARLY: Final = b"early lie "  # before a Spec, with a number: which one to tell before Ready
# The descriptors of a process are those that the warden gave it, under the same numbers, and the
# warden keeps those of every inmate so far.
_MAX_FDS: Final = 4096


@fact
class Told:
    """A lie was told, or ``refused`` is the call that was not let pass."""

    TYPE: ClassVar[int] = 200
    FIELDS: ClassVar[tuple[Check, ...]] = (text(4096),)
    refused: str


@fact
class Lie:
    """Tell a lie; ``request_id`` is that of this command."""

    TYPE: ClassVar[int] = 200
    FIELDS: ClassVar[tuple[Check, ...]] = (U32, U32, U32)
    ANSWER: ClassVar[type[Message]] = Told
    WORD: ClassVar[str] = "lie"
    number: int
    request_id: int
    times: int


@fact
class Outcomes:
    """What became of attempts: a packed map of their numbers to ``outcome``."""

    TYPE: ClassVar[int] = 201
    FIELDS: ClassVar[tuple[Check, ...]] = (blob(60_000),)
    packed: bytes


@fact
class Attempts:
    """Make attempts; ``world`` is a packed map of what a ``Cell`` has to know."""

    TYPE: ClassVar[int] = 201
    FIELDS: ClassVar[tuple[Check, ...]] = (sequence(U32, 10_000), blob(60_000))
    ANSWER: ClassVar[type[Message]] = Outcomes
    WORD: ClassVar[str] = "breakout"
    numbers: tuple[int, ...]
    world: bytes


class Inmate:
    """A device taken over: it is what it was, but commands are carried out by injected code."""

    thread: ClassVar[bool] = False  # which makes the attempts, of those that start here

    def __init__(self, kind: str, device: VirtioDevice, files: Sequence[int]) -> None:
        self._kind = kind
        self.device = device
        self._files = tuple(files)
        self._guest_at = 0
        self.early_lie: object = None
        self._memory = -1

    def __getattr__(self, name: str) -> object:
        return getattr(self.device, name)

    def attach(self, context: DeviceContext) -> None:
        """Note where guest memory is, and go on as the device does."""
        self._memory = context.memory.fd
        self._guest_at = linux.buffer_address(memoryview(context.memory.mappings[0][1]))
        if isinstance(self.early_lie, int):
            _look_around()
            lies.tell(lies.LIES[self.early_lie], self.channel(), 1, 1)
        self.device.attach(context)
        if self.thread:
            hands.be_a_thread()

    def command(self, command: Command) -> Message:
        """Make the attempts that are asked for and say what became of each, or tell a lie."""
        match command:
            case Lie(number, request_id, times):
                try:
                    lies.tell(lies.LIES[number], self.channel(), request_id, times)
                except Refused as refused:
                    return Told(f"{refused}")
                return Told("")
            case Attempts(wanted, world):
                cell = self._cell(unpack_fields(world))
                outcomes = {f"{at}": outcome(ATTEMPTS[at], cell) for at in wanted}
                return Outcomes(msgpack.packb(outcomes))
        return self.device.command(command)

    def _cell(self, world: dict[str, object]) -> Cell:
        return Cell(
            kind=self._kind,
            channel=self.channel(),
            memory=self._memory,
            guest_at=self._guest_at,
            files=self._files,
            fds=_FDS,
            **world,  # type: ignore[arg-type]  # from our own rig
        )

    def channel(self) -> int:
        """Return the descriptor of the channel: the lowest socket that is not the device's own."""
        return min(fd for fd in _SOCKETS if fd not in self._files)


# Filled in the device's process before its filter is loaded, which then denies the calls for it.
_FDS: tuple[int, ...] = ()
_SOCKETS: tuple[int, ...] = ()


def outcome(attempt: Attempt, cell: Cell) -> list[object]:
    """Return ``["out"]``, or how the attempt was refused: call, number, errno and arguments."""
    try:
        attempt.act(cell)
    except Refused as refused:
        return [refused.name, refused.number, refused.error, list(refused.words)]
    return ["out"]


def _prepare(report: Callable[..., None]) -> Callable[..., None]:
    """What a device does last before its filter: the code moves in."""

    def prepare(fd: int, head: bytes, **options: int) -> None:
        report(fd, head, **options)
        if head == CALL_DENIED_HEAD:  # else it is no device
            hands.arm()
            _look_around()

    return prepare


def _look_around() -> None:
    """Note what is open."""
    global _FDS, _SOCKETS
    found = {fd: _mode(fd) for fd in range(_MAX_FDS)}
    _FDS = tuple(fd for fd, mode in found.items() if mode is not None)
    _SOCKETS = tuple(fd for fd, mode in found.items() if mode and stat.S_ISSOCK(mode))


def _mode(fd: int) -> int | None:
    try:
        return os.fstat(fd).st_mode
    except OSError:
        return None


def _take_over(
    kind: str, real: DeviceKind, stand_ins: frozenset[str], inmate: type[Inmate]
) -> DeviceKind:
    def build(spec: bytes, fds: Sequence[int]) -> VirtioDevice:
        if kind in stand_ins:
            mock.patch.object(Vhost, "_call", lambda _self, _what, _request, data: data).start()
            mock.patch.object(Vhost, "set_guest_cid", return_value=None).start()
        early_lie = None
        if spec.startswith(EARLY):
            number, spec = spec.removeprefix(EARLY)[:2], spec.removeprefix(EARLY)[2:]
            early_lie = int.from_bytes(number, "big")
        made = inmate(kind, real.build(spec, fds), fds)
        made.early_lie = early_lie
        return made  # type: ignore[return-value]  # it is one by delegation

    return real._replace(build=build)


@contextmanager
def taken_over(
    kinds: Sequence[str],
    stand_ins: frozenset[str],
    inmate: type[Inmate] = Inmate,
    *,
    thread: bool = False,
) -> Iterator[None]:
    """Have wardens that start meanwhile make inmates of these kinds.

    Where the host has no vhost, ``stand_ins`` get a kernel that says yes to everything. With
    ``thread`` a thread that was there before the filter makes the attempts; that needs a kind that
    may start one.
    """
    changed = {kind: _take_over(kind, DEVICE_KINDS[kind], stand_ins, inmate) for kind in kinds}
    prepare = _prepare(linux.report_denied_calls)
    with (
        mock.patch.dict(DEVICE_KINDS, changed),
        mock.patch.dict(COMMANDS._types, {one.TYPE: one for one in (Lie, Attempts)}),
        mock.patch.dict(ANSWERS._types, {one.TYPE: one for one in (Told, Outcomes)}),
        mock.patch.object(linux, "report_denied_calls", prepare),
        mock.patch.object(Inmate, "thread", thread),
    ):
        yield


@contextmanager
def filters_left_out() -> Iterator[None]:
    """Have devices, and the warden that they come from, load no filter; all else stays."""
    with mock.patch.object(linux, "load_seccomp_filter"):
        yield
