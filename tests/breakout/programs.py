# SPDX-License-Identifier: BSD-3-Clause
"""Attempts on new programs and new code: processes, threads, exec, executable memory."""

from __future__ import annotations

import errno
import mmap
import struct
from typing import TYPE_CHECKING, Final

from tests.breakout.attempt import Attempt, Cell, any_of, every, just, on_each
from tests.breakout.hands import Refused, address, call

if TYPE_CHECKING:
    from collections.abc import Callable

GROUP: Final = "programs"

CLONE_VM: Final = 0x100
CLONE_FS: Final = 0x200
CLONE_FILES: Final = 0x400
CLONE_SIGHAND: Final = 0x800
CLONE_VFORK: Final = 0x4000
CLONE_PARENT: Final = 0x8000
CLONE_THREAD: Final = 0x10000
CLONE_NEWUSER: Final = 0x10000000
SIGCHLD: Final = 17
_THREAD: Final = CLONE_VM | CLONE_FS | CLONE_FILES | CLONE_SIGHAND | CLONE_THREAD
AT_EMPTY_PATH: Final = 0x1000
READ_IMPLIES_EXEC: Final = 0x400000
_RX: Final = mmap.PROT_READ | mmap.PROT_EXEC
_RWX: Final = _RX | mmap.PROT_WRITE
_ANONYMOUS: Final = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
_PAGE: Final = 4096
MAP_FIXED: Final = 0x10

# Since Linux 6.4 the kernel's workers for vhost are processes of the device, so it may have some.
WORKERS: Final = frozenset({"vhost-net", "vhost-vsock"})
# These may write files, and so the memfd that would be the program.
WRITERS: Final = frozenset({"block", "console"})

_stack = bytearray(64 * 1024)
_own = mmap.mmap(-1, _PAGE, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)


def reap(pid: int) -> None:
    try:
        call("wait4", pid, 0, 0x40000000, 0)
    except Refused:
        return  # a thread, or somebody else's child


def forks(name: str, *words: int) -> Callable[[Cell], object]:
    return lambda _cell: reap(call(name, *words))


def clone_thread(_cell: Cell) -> None:
    call("clone", _THREAD, address(_stack) + len(_stack) - 256, 0, 0, 0)


def clone3(_cell: Cell) -> None:
    arguments = struct.pack("8Q", 0, 0, 0, 0, SIGCHLD, 0, 0, 0)
    reap(call("clone3", arguments, len(arguments)))


def execute(path: bytes) -> Callable[[Cell], object]:
    return lambda _cell: executed(lambda: call("execve", path, 0, 0))


def executed(act: Callable[[], object]) -> None:
    """What is no program was looked at as one, and so would have been started."""
    try:
        act()
    except Refused as refused:
        if refused.error != errno.ENOEXEC:
            raise


def execute_memfd(_cell: Cell) -> None:
    fd = call("memfd_create", b"program\0", 0)
    try:
        call("write", fd, b"not an ELF file at all", 22)
        executed(lambda: call("execveat", fd, b"\0", 0, 0, AT_EMPTY_PATH))
    finally:
        call("close", fd)


def map_executable(fd: int, flags: int) -> None:
    at = call("mmap", 0, _PAGE, _RX, flags, fd, 0)
    call("munmap", at, _PAGE)


def protect_executable(_cell: Cell) -> None:
    at = address(memoryview(_own))
    call("mprotect", at, _PAGE, _RWX)
    call("mprotect", at, _PAGE, _RWX & ~mmap.PROT_EXEC)


def protect_by_key(_cell: Cell) -> None:
    call("pkey_mprotect", address(memoryview(_own)), _PAGE, _RWX, -1)


def read_implies_exec(_cell: Cell) -> None:
    call("personality", READ_IMPLIES_EXEC)
    call("personality", 0)


def attach_shared(_cell: Cell) -> None:
    segment = call("shmget", 0, _PAGE, 0o1700)
    call("shmdt", call("shmat", segment, 0, 0o100000))


def remap(cell: Cell) -> None:
    any_of(
        [
            lambda: call("remap_file_pages", address(memoryview(_own)), _PAGE, 0, 0, 0),
            lambda: call("remap_file_pages", address(_stack) & ~0xFFF, _PAGE, 0, 1, 0),
        ]
    )


def listen_to_filter(_cell: Cell) -> None:
    """A filter above ours cannot loosen it, but its listener could answer in the kernel's place."""
    allow = struct.pack("HBBI", 0x06, 0, 0, 0x7FFF0000)
    program = struct.pack("HxxxxxxQ", 1, address(allow))
    call("close", call("seccomp", 1, 8, program))


ATTEMPTS: Final = (
    Attempt(GROUP, "fork", forks("fork"), jail=True, but=WORKERS, proof=True),
    Attempt(GROUP, "vfork", forks("vfork"), jail=True, but=WORKERS, proof=True),
    Attempt(GROUP, "clone", forks("clone", SIGCHLD), jail=True, but=WORKERS, proof=True),
    Attempt(
        GROUP,
        "clone with the same memory",
        forks("clone", CLONE_VM | CLONE_VFORK | SIGCHLD),
        jail=True,
        but=WORKERS,
        proof=True,
    ),
    Attempt(
        GROUP,
        "clone as a sibling",
        forks("clone", CLONE_PARENT | SIGCHLD),
        jail=True,
        but=WORKERS,
    ),
    Attempt(
        GROUP,
        "clone into a user namespace",
        forks("clone", CLONE_NEWUSER | SIGCHLD),
        jail=True,
        proof=True,
    ),
    Attempt(GROUP, "clone a thread", clone_thread, jail=True, but=WORKERS, proof=True),
    Attempt(GROUP, "clone3", clone3, jail=True, but=WORKERS, proof=True),
    Attempt(GROUP, "execute /bin/sh", execute(b"/bin/sh\0"), jail=True),
    Attempt(GROUP, "execute itself", execute(b"/proc/self/exe\0"), jail=True),
    Attempt(
        GROUP,
        "execute each descriptor",
        on_each(every, lambda fd: executed(lambda: call("execveat", fd, b"\0", 0, 0, 0x1000))),
    ),
    Attempt(
        GROUP, "execute a program in memory", execute_memfd, jail=True, but=WRITERS, proof=True
    ),
    Attempt(
        GROUP, "map executable memory", lambda _cell: map_executable(-1, _ANONYMOUS), proof=True
    ),
    Attempt(
        GROUP,
        "map guest memory executable",
        lambda cell: map_executable(cell.memory, mmap.MAP_SHARED),
        proof=True,
    ),
    Attempt(
        GROUP,
        "map each descriptor executable",
        on_each(every, lambda fd: map_executable(fd, mmap.MAP_PRIVATE)),
        proof=True,
    ),
    Attempt(
        GROUP,
        "map a descriptor at all",
        on_each(every, lambda fd: call("mmap", 0, _PAGE, 1, mmap.MAP_SHARED, fd, 0)),
        proof=True,
    ),
    Attempt(
        GROUP,
        "map over what is there",
        lambda _cell: call(
            "mmap", address(memoryview(_own)), _PAGE, 3, _ANONYMOUS | MAP_FIXED, -1, 0
        ),
        proof=True,
    ),
    Attempt(GROUP, "make memory executable", protect_executable, proof=True),
    Attempt(GROUP, "make memory executable by a key", protect_by_key, proof=True),
    Attempt(GROUP, "make all that is read executable", read_implies_exec, proof=True),
    Attempt(GROUP, "attach executable shared memory", attach_shared, proof=True),
    Attempt(GROUP, "rearrange file pages", remap),
    Attempt(GROUP, "load a library", just("uselib", b"/lib/ld.so\0")),
    Attempt(GROUP, "change the local descriptor table", just("modify_ldt", 1, bytearray(16), 16)),
    Attempt(GROUP, "change a segment base", just("arch_prctl", 0x1003, bytearray(8)), proof=True),
    Attempt(
        GROUP,
        "change what handles a signal",
        just("rt_sigaction", 10, 0, bytearray(32), 8),
        proof=True,
    ),
    Attempt(GROUP, "add a filter that asks a listener", listen_to_filter, proof=True),
    Attempt(GROUP, "move the program's own bounds", just("prctl", 35, 1, 0x10000, 0, 0), jail=True),
)
