# SPDX-License-Identifier: BSD-3-Clause
"""Damaged kernel files of every kind: they load, or they raise ``ConfigError``; nothing else."""

from __future__ import annotations

import contextlib
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sys_util.errors import ConfigError
from sys_util.guest_memory import GuestMemory
from tests.kernel_loader.images import (
    COMPRESSORS,
    LINUX_NOTE,
    MIB,
    PVH_NOTE,
    RAM_BYTES,
    TEXT_GPA,
    Elf,
    Load,
    bzimage,
    open_kernel,
    write,
)

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("lines")]

ELF = Elf(
    loads=[Load(), Load(gpa=TEXT_GPA + 0x1000, size_bytes=0x2000)], notes=PVH_NOTE + LINUX_NOTE
).build()
FILES = {"elf": ELF} | {name: bzimage(compress(ELF)) for name, compress in COMPRESSORS.items()}
EDGES = (0, 1, 7, 0x7F, 0x80, 0xFF)


def boot(content: bytes) -> None:
    with tempfile.TemporaryDirectory() as directory:
        path = write(Path(directory), content)
        with contextlib.suppress(ConfigError), contextlib.closing(open_kernel(path)) as image:
            image.check([(0, RAM_BYTES)], MIB)
            # A kernel that the check accepts must fit into memory, whatever the file says.
            with contextlib.closing(GuestMemory.create([(0, RAM_BYTES)])) as memory:
                image.place(memory)


def header_mutations() -> st.SearchStrategy[list[tuple[int, int]]]:
    """Return changes of single bytes, mostly in headers and to values at the edges of a range."""
    offsets = st.one_of(st.integers(0, 0x180), st.integers(0x1F0, 0x270), st.integers(0, 0x900))
    values = st.one_of(st.sampled_from(EDGES), st.integers(0, 255))
    return st.lists(st.tuples(offsets, values), min_size=1, max_size=6)


@pytest.mark.parametrize("name", FILES)
@given(mutations=header_mutations())
@settings(max_examples=40, deadline=None, derandomize=True)
def test_open_kernel_mutated_file_raises_nothing_but_config_error(
    name: str, mutations: list[tuple[int, int]]
) -> None:
    content = bytearray(FILES[name])
    for offset, value in mutations:
        content[offset % len(content)] = value
    boot(bytes(content))


@pytest.mark.parametrize("name", FILES)
@given(length=st.integers(1, 0x900))
@settings(max_examples=40, deadline=None, derandomize=True)
def test_open_kernel_truncated_file_raises_nothing_but_config_error(name: str, length: int) -> None:
    boot(FILES[name][:length])


@given(content=st.binary(min_size=1, max_size=0x500), magic=st.sampled_from([b"", b"\x7fELF"]))
@settings(max_examples=40, deadline=None, derandomize=True)
def test_open_kernel_garbage_raises_nothing_but_config_error(content: bytes, magic: bytes) -> None:
    boot(magic + content)
