# SPDX-License-Identifier: BSD-3-Clause
"""How much of guest memory a process has mapped, and how much of it in huge pages (proc(5))."""

from __future__ import annotations

from sys_util.typing import TYPE_CHECKING, Final, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterable

_GUEST_MEMORY: Final = b"/memfd:crosvm_guest"
_HUGE: Final = (b"ShmemPmdMapped:", b"FilePmdMapped:")


class MappedMemory(NamedTuple):
    """Guest memory that is mapped in a process, in KiB; ``huge_kib`` is the part in huge pages."""

    mapped_kib: int
    huge_kib: int


def read_memory(pid: int) -> MappedMemory | None:
    """Read it from /proc; return ``None`` if we may not, as only root may for a confined vmm."""
    try:
        with open(f"/proc/{pid}/smaps", "rb") as smaps:
            return add_up(smaps)
    except (OSError, ValueError, IndexError):
        return None


def add_up(smaps: Iterable[bytes]) -> MappedMemory:
    """Add up the mappings of guest memory in the lines of a file ``smaps``.

    Raises:
        ValueError, IndexError: a line is not as proc(5) says.
    """
    mapped = huge = 0
    is_guest = False
    for line in smaps:
        words = line.split()
        if not words[0].endswith(b":"):
            is_guest = len(words) > 5 and words[5].startswith(_GUEST_MEMORY)
        elif is_guest and words[0] == b"Rss:":
            mapped += int(words[1])
        elif is_guest and words[0] in _HUGE:
            huge += int(words[1])
    return MappedMemory(mapped, huge)


def memory_line(memory: MappedMemory | None) -> str:
    """Return the line for people."""
    if memory is None:
        return "  guest memory: only root can see its pages"
    return (
        f"  guest memory: {memory.mapped_kib >> 10} MiB in use by the vmm and its vCPUs, "
        f"{memory.huge_kib >> 10} MiB of it in huge pages"
    )
