# SPDX-License-Identifier: BSD-3-Clause
"""Kill the process of a device inside a turn of the engine, and look at what it left behind.

As in ``killed.py`` a child serves that has everything the test has. The test traces it (ptrace(2)):
it is stopped at the beginning and at the end of each system call of the turn, and, between two of
them, after each instruction that changes guest memory. At one of these moments it is killed. They
are all the kills there are, since nothing else of a process outlives it.
"""

from __future__ import annotations

import ctypes
import os
import platform
import signal
import struct
from typing import TYPE_CHECKING, Final, NamedTuple, Protocol, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

PTRACE_TRACEME: Final = 0
PTRACE_PEEKTEXT: Final = 1
PTRACE_SINGLESTEP: Final = 9
PTRACE_SYSCALL: Final = 24
PTRACE_SETOPTIONS: Final = 0x4200
PTRACE_GET_SYSCALL_INFO: Final = 0x420E
PTRACE_O_TRACESYSGOOD: Final = 1
PTRACE_O_EXITKILL: Final = 1 << 20
PTRACE_SYSCALL_INFO_ENTRY: Final = 1

_SYSCALL_STOP: Final = signal.SIGTRAP | 0x80
_INFO: Final = struct.Struct("<B3xIQQQ")  # op, arch, instruction pointer, stack pointer, number
_INFO_BYTES: Final = 88
_FAILED: Final = 3
# preadv, pwritev, preadv2, pwritev2, fdatasync, readv, writev, write
_NUMBERS: Final = {
    "x86_64": (295, 296, 327, 328, 75, 19, 20, 1),
    "aarch64": (69, 70, 286, 287, 83, 65, 66, 64),
}
_CALLS: Final = frozenset(_NUMBERS.get(platform.machine(), ()))
CAN_TRACE: Final = bool(_CALLS)
# The instruction that makes a system call, and which bits of a word are it.
_MAKES_CALL: Final = {"x86_64": (0xFFFF, 0x050F), "aarch64": (0xFFFF_FFFF, 0xD400_0001)}
# Between two calls the engine has some hundred instructions; after more Python goes on.
_MAX_STEPS: Final = 3000

_libc: Final = ctypes.CDLL(None, use_errno=True)
_libc.ptrace.restype = ctypes.c_long
_libc.ptrace.argtypes = (ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p)


class Stage(Protocol):
    """What device processes come and go on."""

    def left(self) -> object:
        """Return what the engine stores into, fast: it is compared after each instruction."""
        ...

    def close(self) -> None: ...


S = TypeVar("S", bound=Stage)


class Moment(NamedTuple):
    """So many stops at system calls, and then so many instructions."""

    stops: int
    steps: int


def _ptrace(request: int, pid: int, address: int = 0, data: int | None = None) -> int:
    ctypes.set_errno(0)
    done = int(_libc.ptrace(request, pid, address, data))
    if done == -1 and ctypes.get_errno():
        raise OSError(ctypes.get_errno(), f"ptrace {request}")
    return done


class Traced:
    """A child that serves, and stops where it is told to."""

    def __init__(self, serve: Callable[[], object]) -> None:
        self.status: int | None = None
        self.begins = False  # whether the last stop was at the beginning of a call
        self._in_ours = False
        self._buffer = ctypes.create_string_buffer(_INFO_BYTES)
        self.pid = os.fork()
        if self.pid == 0:
            try:
                _ptrace(PTRACE_TRACEME, 0)
                os.kill(os.getpid(), signal.SIGSTOP)
                serve()
                os._exit(0)
            finally:
                os._exit(_FAILED)
        self._wait()
        _ptrace(PTRACE_SETOPTIONS, self.pid, 0, PTRACE_O_TRACESYSGOOD | PTRACE_O_EXITKILL)

    def _wait(self) -> int:
        """Return the signal with which the child has stopped, or 0 if it has ended."""
        _, status = os.waitpid(self.pid, 0)
        if os.WIFSTOPPED(status):
            return os.WSTOPSIG(status)
        self.status = os.waitstatus_to_exitcode(status)
        return 0

    def to_call(self) -> bool:
        """Go on to where a call of the engine begins or ends next; return whether there is one."""
        while True:
            _ptrace(PTRACE_SYSCALL, self.pid)
            stopped = self._wait()
            if not stopped:
                return False
            if stopped == _SYSCALL_STOP and self._is_ours():
                return True

    def _info(self) -> tuple[int, int, int]:
        """Return the kind of stop, the instruction pointer and the number of a call that begins."""
        _ptrace(PTRACE_GET_SYSCALL_INFO, self.pid, _INFO_BYTES, ctypes.addressof(self._buffer))
        kind, _, pointer, _, number = _INFO.unpack_from(self._buffer)
        return kind, pointer, number

    def _is_ours(self) -> bool:
        """Whether the call is one of the engine's; the kernel tells its number at its beginning."""
        kind, _, number = self._info()
        self.begins = kind == PTRACE_SYSCALL_INFO_ENTRY
        if self.begins:
            self._in_ours = number in _CALLS
        return self._in_ours

    def step(self) -> bool:
        """Carry out one instruction, unless that makes a system call; return whether it did."""
        mask, makes_call = _MAKES_CALL[platform.machine()]
        if _ptrace(PTRACE_PEEKTEXT, self.pid, self._info()[1]) & mask == makes_call:
            return False
        _ptrace(PTRACE_SINGLESTEP, self.pid)
        return self._wait() == signal.SIGTRAP

    def kill(self) -> None:
        """End it as a crash does, unless it has ended."""
        if self.status is None:
            os.kill(self.pid, signal.SIGKILL)
            while self._wait():
                pass


def each_native_kill(make: Callable[[], S], serve: Callable[[S], object]) -> Iterator[S]:
    """Yield a stage for each moment of a turn at which its process can be killed, and for none."""
    stage = make()
    moments = _moments(stage, serve)
    stage.close()
    for moment in moments:
        stage = make()
        child = Traced(lambda stage=stage: serve(stage))  # type: ignore[misc]
        for _ in range(moment.stops):
            child.to_call()
        for _ in range(moment.steps):
            child.step()
        child.kill()
        yield stage
        stage.close()


def _moments(stage: S, serve: Callable[[S], object]) -> list[Moment]:
    """Return all moments, from before the first call to the end of the process."""
    child = Traced(lambda: serve(stage))
    found, stops = [Moment(0, 0)], 0
    while child.to_call():
        stops += 1
        found.append(Moment(stops, 0))
        if not child.begins:
            found += [Moment(stops, steps) for steps in _changes(child, stage)]
    assert child.status == 0, child.status
    return [*found, Moment(stops + 1, 0)]


def _changes(child: Traced, stage: Stage) -> Iterator[int]:
    """Go on until the next call, and tell after how many instructions each something changed."""
    before = stage.left()
    for steps in range(1, _MAX_STEPS):
        if not child.step():
            return
        left = stage.left()
        if left != before:
            before = left
            yield steps
