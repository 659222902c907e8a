# SPDX-License-Identifier: BSD-3-Clause
"""Attempts to have more than a share: memory, disk, descriptors, time of the processor."""

from __future__ import annotations

import errno
import mmap
import struct
from functools import partial
from typing import TYPE_CHECKING, Final

from tests.breakout.attempt import (
    Attempt,
    just,
    memories,
    on_each,
    own_files,
    refuse,
)
from tests.breakout.hands import address, call

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.breakout.attempt import Cell

MEMORY: Final = "guest memory"
SHARE: Final = "resources"

BLOCK: Final = frozenset({"block"})
CONSOLE: Final = frozenset({"console"})
# Their files may grow: the image by a resize, what a console writes without a bound.
RAISED: Final = BLOCK | CONSOLE

F_ADD_SEALS: Final = 1033
_SEALS: Final = {"write": 0x8, "future write": 0x10, "exec": 0x20}
_GROWN: Final = 1 << 32
_ANONYMOUS: Final = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
_READ: Final = mmap.PROT_READ
_WRITE: Final = mmap.PROT_READ | mmap.PROT_WRITE
_GIB: Final = 1 << 30
_TIB: Final = 1 << 40
_PAST: Final = 16 << 20
FALLOC_FL_KEEP_SIZE: Final = 1
FALLOC_FL_PUNCH_HOLE: Final = 2
FALLOC_FL_ZERO_RANGE: Final = 0x10

_LIMITS: Final = {
    "core": 4,
    "data": 2,
    "file size": 1,
    "locked memory": 8,
    "message queues": 12,
    "open files": 7,
    "processes": 6,
    "signals": 11,
}
_INFINITY: Final = 0xFFFF_FFFF_FFFF_FFFF

_page = bytearray(8192)


def map_and_free(length: int, protection: int, flags: int) -> None:
    call("munmap", call("mmap", 0, length, protection, flags, -1, 0), length)


def grow_break(_cell: Cell) -> None:
    """brk(2) tells by its result that it did not."""
    now = call("brk", 0)
    if call("brk", now + _GIB) < now + _GIB:
        raise refuse("brk", errno.ENOMEM)
    call("brk", now)


def remap_larger(_cell: Cell) -> None:
    at = call("mmap", 0, 4096, _READ, _ANONYMOUS, -1, 0)
    at = call("mremap", at, 4096, _TIB, 1, 0)
    call("munmap", at, _TIB)


def many_maps(_cell: Cell) -> None:
    """Page tables for memory that is only read count nowhere but in the address space."""
    map_and_free(_TIB, _READ, _ANONYMOUS)


def map_guest_again(cell: Cell) -> None:
    """The duplicate of a shared mapping may be longer than the file (mremap(2), old size 0)."""
    call("munmap", call("mremap", cell.guest_at, 0, _TIB, 1, 0), _TIB)


def write_past_end(cell: Cell) -> None:
    page = bytearray(4096)
    vector = struct.pack("QQ", address(page), len(page))
    for fd in cell.files:
        call("pwritev", fd, vector, 1, cell.file_bytes, 0)


def allocate(mode: int) -> Callable[[Cell], object]:
    """Take space of the host past the end of the image; what counts is that the disk fills."""

    def act(cell: Cell) -> None:
        for fd in cell.files:
            call("fallocate", fd, mode, cell.file_bytes, _PAST)

    return act


def too_many_descriptors(_cell: Cell) -> None:
    taken: list[int] = []
    try:
        while len(taken) < 2048:
            taken.append(call("dup", 0))
    finally:
        for fd in taken:
            call("close", fd)


def raise_limit(resource: int) -> Callable[[Cell], object]:
    return just("prlimit64", 0, resource, struct.pack("QQ", _INFINITY, _INFINITY), 0)


def lock_memory(_cell: Cell) -> None:
    call("mlock", address(_page), 4096)


def real_time(_cell: Cell) -> None:
    call("sched_setscheduler", 0, 1, struct.pack("i", 1))


def deadline(_cell: Cell) -> None:
    attributes = struct.pack("IIQiIQQQ", 48, 6, 0, 0, 0, 10**6, 10**7, 10**7)
    call("sched_setattr", 0, attributes, 0)


def every_processor(_cell: Cell) -> None:
    call("sched_setaffinity", 0, 8, struct.pack("Q", 1))
    call("sched_setaffinity", 0, 8, struct.pack("Q", 0xFFFF_FFFF_FFFF_FFFF))


def make_timer(_cell: Cell) -> None:
    call("timer_create", 1, 0, bytearray(4))


def add_seal(seal: int, fd: int) -> None:
    call("fcntl", fd, F_ADD_SEALS, seal)


ATTEMPTS: Final = (
    Attempt(
        MEMORY,
        "grow it",
        on_each(memories, lambda fd: call("ftruncate", fd, _GROWN)),
        jail=True,
    ),
    Attempt(MEMORY, "shrink it", on_each(memories, lambda fd: call("ftruncate", fd, 0)), jail=True),
    Attempt(
        MEMORY,
        "grow it by fallocate",
        on_each(memories, lambda fd: call("fallocate", fd, 0, 0, _GROWN)),
        jail=True,
    ),
    Attempt(
        MEMORY,
        "cut a piece out",
        on_each(memories, lambda fd: call("fallocate", fd, 8, 0, 4096)),
        jail=True,
    ),
    *(
        Attempt(
            MEMORY,
            f"seal it against {name}",
            on_each(memories, partial(add_seal, seal)),
            jail=True,
        )
        for name, seal in _SEALS.items()
    ),
    Attempt(
        MEMORY,
        "resize the page of counters and every other file",
        on_each(
            lambda cell: set(cell.fds) - set(cell.files), lambda fd: call("ftruncate", fd, 1 << 20)
        ),
        jail=True,
    ),
    Attempt(
        SHARE,
        "resize its file",
        on_each(own_files, lambda fd: call("ftruncate", fd, 1 << 60)),
        jail=True,
        but=CONSOLE,
        only=BLOCK,
    ),
    Attempt(SHARE, "write past the end of its file", write_past_end, jail=True, only=BLOCK),
    Attempt(SHARE, "allocate past the end of its file", allocate(0), jail=True, only=BLOCK),
    Attempt(
        SHARE,
        "allocate past the end and keep the size",
        allocate(FALLOC_FL_KEEP_SIZE),
        only=BLOCK,
    ),
    Attempt(
        SHARE, "write zeros past the end", allocate(FALLOC_FL_ZERO_RANGE), jail=True, only=BLOCK
    ),
    Attempt(
        SHARE,
        "write zeros past the end and keep the size",
        allocate(FALLOC_FL_ZERO_RANGE | FALLOC_FL_KEEP_SIZE),
        only=BLOCK,
    ),
    Attempt(
        SHARE,
        "hold 1 GiB of memory",
        lambda _cell: map_and_free(_GIB, _WRITE, _ANONYMOUS),
        jail=True,
        proof=True,
    ),
    Attempt(SHARE, "hold 1 GiB by the break", grow_break, jail=True),
    Attempt(SHARE, "hold page tables for 1 TiB", many_maps, jail=True, proof=True),
    Attempt(SHARE, "hold page tables for 1 TiB by mremap", remap_larger, jail=True, proof=True),
    Attempt(
        SHARE,
        "map guest memory again, 1 TiB long",
        map_guest_again,
        jail=True,
    ),
    Attempt(
        SHARE,
        "share 1 GiB with nobody",
        lambda _cell: map_and_free(_GIB, _WRITE, mmap.MAP_SHARED | mmap.MAP_ANONYMOUS),
        proof=True,
    ),
    Attempt(SHARE, "lock memory", lock_memory, jail=True),
    Attempt(SHARE, "lock all memory", just("mlockall", 2), jail=True),
    Attempt(SHARE, "hold too many descriptors", too_many_descriptors, jail=True, proof=True),
    *(
        Attempt(
            SHARE,
            f"raise the limit on {name}",
            raise_limit(number),
            jail=True,
            but=RAISED if name == "file size" else frozenset(),
        )
        for name, number in _LIMITS.items()
    ),
    Attempt(SHARE, "run before others", just("setpriority", 0, 0, -20), jail=True),
    Attempt(SHARE, "run before others in its group", just("setpriority", 1, 0, -20), jail=True),
    Attempt(SHARE, "run in real time", real_time, jail=True),
    Attempt(SHARE, "run by deadline", deadline, jail=True),
    Attempt(SHARE, "choose its processors", every_processor, proof=True),
    Attempt(SHARE, "do its I/O before others", just("ioprio_set", 1, 0, 1 << 13), jail=True),
    Attempt(SHARE, "flush as the kernel does", just("prctl", 57, 1, 0, 0, 0), jail=True),
    Attempt(SHARE, "make timers", make_timer, jail=True),
    Attempt(SHARE, "move its memory", just("set_mempolicy", 0, 0, 0)),
    Attempt(SHARE, "interrupt every processor", just("membarrier", 1, 0, 0), proof=True),
)
