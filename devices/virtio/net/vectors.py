# SPDX-License-Identifier: BSD-3-Clause
"""A frame that lies in several pieces of memory, addressed as if it were one."""

from __future__ import annotations

from sys_util.typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence


def cut(vectors: Sequence[memoryview], skip: int, length: int) -> list[memoryview]:
    """Return the memory of ``length`` bytes in ``vectors``, ``skip`` bytes from their start."""
    found: list[memoryview] = []
    for vector in vectors:
        if skip >= len(vector):
            skip -= len(vector)
            continue
        part = vector[skip : skip + length]
        found.append(part)
        length -= len(part)
        if not length:
            break
        skip = 0
    return found


def scatter(data: bytes | memoryview, vectors: Sequence[memoryview], skip: int) -> None:
    """Store ``data`` in ``vectors``, ``skip`` bytes from their start."""
    at = 0
    for part in cut(vectors, skip, len(data)):
        part[:] = data[at : at + len(part)]
        at += len(part)


def cut_bytes(vectors: Sequence[memoryview], length: int, skip: int = 0) -> bytes:
    """Return a copy of ``length`` bytes in ``vectors``, ``skip`` bytes from their start."""
    return b"".join(cut(vectors, skip, length))
