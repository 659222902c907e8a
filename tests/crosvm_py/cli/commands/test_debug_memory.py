# SPDX-License-Identifier: BSD-3-Clause
"""``crosvm debug dump``: how much of guest memory is in huge pages."""

from __future__ import annotations

import os

import pytest

from crosvm_py.cli.commands.debug_memory import MappedMemory, add_up, memory_line, read_memory
from sys_util.guest_memory import GuestMemory

SMAPS = b"""\
7f0000000000-7f0010000000 rw-s 00000000 00:01 7 /memfd:crosvm_guest (deleted)
Size:             262144 kB
Rss:               26624 kB
ShmemPmdMapped:    20480 kB
FilePmdMapped:      2048 kB
VmFlags: rd wr sh mr mw me ms dd hg
7f0010000000-7f0010001000 rw-s 00000000 00:01 8 /memfd:crosvm_counters (deleted)
Rss:                   4 kB
ShmemPmdMapped:     2048 kB
VmFlags: rd wr sh
7f0020000000-7f0020001000 rw-p 00000000 00:00 0
Rss:                   4 kB
"""


def test_only_mappings_of_guest_memory_count() -> None:
    assert add_up(SMAPS.splitlines(keepends=True)) == MappedMemory(26624, 22528)


def test_own_guest_memory_is_found() -> None:
    memory = GuestMemory.create([(0, 1 << 20)])
    memory.write(0, b"used")
    found = read_memory(os.getpid())
    memory.close()
    assert found is not None
    assert found.mapped_kib >= 4


def test_process_that_is_gone_has_none() -> None:
    assert read_memory(1 << 30) is None


@pytest.mark.parametrize(
    ("memory", "text"),
    [
        (MappedMemory(26624, 22528), "26 MiB in use by the vmm and its vCPUs, 22 MiB of it in"),
        (None, "only root can see its pages"),
    ],
)
def test_line_tells_both(memory: MappedMemory | None, text: str) -> None:
    assert f"guest memory: {text}" in memory_line(memory)
