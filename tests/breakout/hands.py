# SPDX-License-Identifier: BSD-3-Clause
"""What injected code acts with: bare system calls, and how each of them was refused."""

from __future__ import annotations

import errno
import faulthandler
import os
from pathlib import Path
from typing import TYPE_CHECKING, Final

from seccomp.syscalls import get_arch, machine_arch

if TYPE_CHECKING:
    from collections.abc import Sequence

_HERE: Final = Path(__file__).parent
_SOURCE: Final = _HERE / "build_hands.py"
_MODULE: Final = _HERE / "_hands.abi3.so"

# A test host has no compiler, and gets the module with the project.
if not _MODULE.exists() or _MODULE.stat().st_mtime < _SOURCE.stat().st_mtime:
    from tests.breakout.build_hands import build

    build()

from tests.breakout._hands import ffi, lib  # noqa: E402 - it has just been built

Word = int | bytes | bytearray | memoryview

SYSCALLS: Final = get_arch(machine_arch()).syscalls  # now: in the jail no file can be opened
MASK: Final = 0xFFFF_FFFF_FFFF_FFFF
_NONE: Final = -1  # a call that this architecture has never had
# Calls that return twice, or let something else run in our stead.
_FORKS: Final = frozenset({"fork", "vfork", "clone", "clone3"})


class Refused(Exception):  # noqa: N818 - what every attempt hopes not to see is no error
    """The kernel did not do it: by the filter's trap, or with an errno."""

    def __init__(self, name: str, number: int, words: tuple[int, ...], error: int) -> None:
        super().__init__(name)
        self.name = name
        self.number = number
        self.words = words
        self.error = error  # 0 for the trap

    @property
    def trapped(self) -> bool:
        """Whether the filter stopped it by its default action."""
        return self.error == 0

    def __str__(self) -> str:
        return f"{self.name}: {os.strerror(self.error) if self.error else 'trapped'}"


def arm() -> None:
    """Survive traps from now on. Before the filter: it denies changing what handles them."""
    if lib.hands_arm() < 0:
        raise OSError("no handler for SIGSYS")
    faulthandler.disable()  # pytest's would try to survive what kills us


def be_a_thread() -> None:
    """Have a thread make the calls, but for those that return twice. Before the filter, too."""
    if lib.hands_be_a_thread() < 0:
        raise OSError("no thread")


def call(name: str | int, *words: Word) -> int:
    """Make a system call; buffers are passed by their address.

    Raises:
        Refused: it was trapped, or failed.
    """
    number = name if isinstance(name, int) else SYSCALLS.get(name, _NONE)
    if number == _NONE:
        raise Refused(str(name), number, (), errno.ENOSYS)
    kept = [ffi.from_buffer(word) for word in words if not isinstance(word, int)]
    addresses = iter([int(ffi.cast("uintptr_t", buffer)) for buffer in kept])
    plain = tuple(word & MASK if isinstance(word, int) else next(addresses) for word in words)
    a, b, c, d, e, f = (*plain, *[0] * (6 - len(plain)))
    if name in _FORKS:
        result = lib.hands_fork(number, a, b, c, d, e)
    else:
        result = lib.hands_call(number, a, b, c, d, e, f)
    del kept
    if result == lib.HANDS_TRAPPED:
        raise Refused(str(name), number, plain, 0)
    if -4096 < result < 0:
        raise Refused(str(name), number, plain, -result)
    return result


def address(buffer: bytes | bytearray | memoryview) -> int:
    """Return where a buffer lies; the caller keeps it alive."""
    return int(ffi.cast("uintptr_t", ffi.from_buffer(buffer)))


def sweep_ioctls(fd: int, first: int, count: int, step: int, skip: Sequence[int]) -> int | None:
    """Return the first request number that reaches the kernel, if one does."""
    skipped = ffi.new("unsigned long[]", list(skip) or [0])
    found = lib.hands_sweep_ioctl(fd, first, count, step, skipped, len(skip))
    return found - 1 if found else None


def enter_by_int80(number: int) -> int:
    """Make a system call of the 32-bit ABI."""
    return lib.hands_int80(number)
