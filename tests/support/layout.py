# SPDX-License-Identifier: BSD-3-Clause
"""What an attacker has to guess of a process: where things lie, and its stack canary."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Final, NamedTuple

_AT_RANDOM: Final = 25  # getauxval(3)
_PAIR: Final = struct.Struct("QQ")
_CANARY_BYTES: Final = 8


class Layout(NamedTuple):
    """Addresses at which the first mappings of a process begin, and where its canary comes from.

    Not that of the interpreter itself: Debian's is no position-independent program.
    """

    libc: int
    heap: int
    stack: int
    canary: bytes


def layout_of(pid: int) -> Layout:
    """Read the layout of a process; that of a device in its jail takes root.

    The canary is made of the random bytes that the kernel gives every program (AT_RANDOM).
    """
    process = Path(f"/proc/{pid}")
    found: dict[str, int] = {}
    for line in (process / "maps").read_text().splitlines():
        words = line.split()
        if len(words) > 5:
            name = words[5].rpartition("/")[2]
            found.setdefault(name.partition(".")[0], int(words[0].partition("-")[0], 16))
    vector = dict(_PAIR.iter_unpack((process / "auxv").read_bytes()))
    with (process / "mem").open("rb", buffering=0) as memory:
        memory.seek(vector[_AT_RANDOM])
        canary = memory.read(_CANARY_BYTES)
    return Layout(found["libc"], found["[heap]"], found["[stack]"], canary)


def has_nothing_in_common(one: Layout, other: Layout) -> bool:
    """Return whether nothing that is known of one of them says anything of the other."""
    return all(ours != theirs for ours, theirs in zip(one, other, strict=True))


def anonymous_kib(pid: int) -> int:
    """Return how much memory of no file a process has, shared with others or not, in KiB."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("RssAnon:"))
