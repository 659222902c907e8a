# SPDX-License-Identifier: BSD-3-Clause
"""A raw image by itself: whole transfers to and from memory in pieces of any size."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from devices.virtio.queue.chain import Reader, Writer
from disk.raw import DiskFile

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

SIZE = 4096
PATTERN = bytes(range(256)) * (SIZE // 256)
CUTS = [
    pytest.param([], id="none"),
    pytest.param([700], id="one"),
    pytest.param([1, 299, 400], id="three"),
]


@pytest.fixture
def fd(tmp_path: Path) -> Iterator[int]:
    path = tmp_path / "disk.img"
    path.write_bytes(PATTERN)
    fd = os.open(path, os.O_RDWR)
    yield fd
    os.close(fd)


def vectors(cuts: Sequence[int]) -> list[memoryview]:
    return [memoryview(bytearray(cut)) for cut in cuts]


@pytest.fixture(params=[None, 3], ids=["whole", "three bytes at a time"])
def most(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the kernel move as little at once as it may."""
    if request.param is None:
        return
    preadv, pwritev = os.preadv, os.pwritev

    def read(fd: int, buffers: Sequence[memoryview], offset: int) -> int:
        return preadv(fd, [buffers[0][: request.param]], offset)

    def write(fd: int, buffers: Sequence[memoryview], offset: int, flags: int) -> int:
        return pwritev(fd, [buffers[0][: request.param]], offset, flags)

    monkeypatch.setattr(os, "preadv", read)
    monkeypatch.setattr(os, "pwritev", write)


@pytest.mark.usefixtures("most")
@pytest.mark.parametrize("cuts", CUTS)
def test_memory_is_filled_and_stored_in_its_order(fd: int, cuts: list[int]) -> None:
    disk, length = DiskFile(fd, direct=False), sum(cuts)
    into = vectors(cuts)
    disk.read(Writer(0, into[:], length), 10)
    assert b"".join(into) == PATTERN[10 : 10 + length]
    disk.write(Reader(0, into[:], length), 1000)
    assert os.pread(fd, SIZE, 0) == PATTERN[:1000] + b"".join(into) + PATTERN[1000 + length :]


def test_read_past_the_end_fills_what_there_is_and_fails(fd: int) -> None:
    writer = Writer(0, vectors([100, 100]), 200)
    with pytest.raises(OSError, match="the image ends early"):
        DiskFile(fd, direct=False).read(writer, SIZE - 150)
    assert writer.written == 150
