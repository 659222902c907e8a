# SPDX-License-Identifier: BSD-3-Clause
"""Discard and write zeroes: what they free, what they store, and every limit on them."""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING

import pytest

from devices.virtio.block.device import (
    MAX_DISCARD_SECTORS,
    MAX_SEGMENTS,
    MAX_WRITE_ZEROES_SECTORS,
    VIRTIO_BLK_F_DISCARD,
    VIRTIO_BLK_F_FLUSH,
    VIRTIO_BLK_F_WRITE_ZEROES,
)
from devices.virtio.block.spec import BlockSpec
from sys_util.linux import FALLOC_FL_KEEP_SIZE, FALLOC_FL_PUNCH_HOLE, FALLOC_FL_ZERO_RANGE
from tests.support.block_driver import (
    DISCARD,
    IN,
    IOERR,
    OK,
    SECTOR,
    UNMAP,
    UNSUPP,
    WRITE_ZEROES,
    BlockDriver,
    ranges,
)

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

SECTORS = 4096
FULL = b"\xff" * (SECTORS * SECTOR)
HOLE = FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE
ZERO = FALLOC_FL_ZERO_RANGE  # with KEEP_SIZE no limit would bound it

Call = tuple[int, int, int]


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "disk.img"
    path.write_bytes(FULL)
    return path


@pytest.fixture
def disk(image: Path) -> Iterator[BlockDriver]:
    driver = BlockDriver.start(BlockSpec(str(image)))
    yield driver
    driver.close()


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[Call]:
    """Record fallocate instead of calling it."""
    calls: list[Call] = []
    monkeypatch.setattr(
        "disk.raw.fallocate",
        lambda _fd, mode, offset, length: calls.append((mode, offset, length)),
    )
    return calls


def without_fallocate(monkeypatch: pytest.MonkeyPatch, number: int = errno.EOPNOTSUPP) -> None:
    def refuse(*_: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr("disk.raw.fallocate", refuse)


class Blocks:
    """A host whose disk takes ranges of whole blocks only, as Linux does for block devices."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, block_bytes: int) -> None:
        self.calls: list[Call] = []
        self._block_bytes = block_bytes
        monkeypatch.setattr("disk.raw.fallocate", self._fallocate)

    def _fallocate(self, fd: int, mode: int, offset: int, length: int) -> None:
        if (offset | length) & (self._block_bytes - 1) or not length:
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        self.calls.append((mode, offset, length))
        os.pwrite(fd, bytes(length), offset)


def test_discard_frees_the_host_blocks_and_keeps_the_size(disk: BlockDriver, image: Path) -> None:
    before = os.stat(image).st_blocks
    assert disk.request(DISCARD, 0, out=[ranges((8, 1024, 0), (2048, 1024, 0))]).status == OK
    after = os.stat(image)
    assert after.st_blocks <= before - 2000
    assert after.st_size == len(FULL)
    assert disk.request(IN, 8, into=[SECTOR]).data == bytes(SECTOR)
    assert disk.request(IN, 7, into=[SECTOR]).data == b"\xff" * SECTOR


def test_discard_on_a_host_that_cannot_is_no_error(
    disk: BlockDriver, image: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    without_fallocate(monkeypatch)
    assert disk.request(DISCARD, 0, out=[ranges((0, 8, 0))]).status == OK
    assert image.read_bytes() == FULL


CANNOT = [errno.EOPNOTSUPP, errno.ENOSYS, errno.ENODEV, errno.EREMOTEIO, errno.EINVAL]


@pytest.mark.parametrize("number", CANNOT, ids=[errno.errorcode[number] for number in CANNOT])
def test_host_that_cannot_makes_no_request_fail(
    disk: BlockDriver, image: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    without_fallocate(monkeypatch, number)
    assert disk.request(DISCARD, 0, out=[ranges((0, 256, 0))]).status == OK
    assert image.read_bytes() == FULL
    assert disk.request(WRITE_ZEROES, 0, out=[ranges((3, 300, UNMAP))]).status == OK
    expected = bytearray(FULL)
    expected[3 * SECTOR : 303 * SECTOR] = bytes(300 * SECTOR)
    assert image.read_bytes() == expected


@pytest.mark.parametrize(
    "number", [errno.EIO, errno.ENOSPC, errno.EPERM], ids=["eio", "full", "no"]
)
def test_host_that_fails_makes_the_request_fail(
    disk: BlockDriver, image: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    without_fallocate(monkeypatch, number)
    assert disk.request(DISCARD, 0, out=[ranges((0, 8, 0))]).status == IOERR
    assert disk.request(WRITE_ZEROES, 0, out=[ranges((0, 8, 0))]).status == IOERR
    assert image.read_bytes() == FULL


# Sectors of 512 bytes: what a driver asks for, and what a host with blocks of 4 KiB or 64 KiB does.
UNALIGNED = [
    pytest.param(4096, 1, 1, None, id="inside-a-block"),
    pytest.param(4096, 20, 2, None, id="inside-another"),
    pytest.param(4096, 7, 2, None, id="on-a-border"),
    pytest.param(4096, 1, 23, (8, 16), id="whole-blocks-inside"),
    pytest.param(4096, 8, 9, (8, 8), id="tail"),
    pytest.param(4096, 7, 9, (8, 8), id="head"),
    pytest.param(4096, 8, 16, (8, 16), id="aligned"),
    pytest.param(64 << 10, 8, 16, None, id="inside-a-large-block"),
    pytest.param(64 << 10, 100, 300, (128, 256), id="whole-large-blocks-inside"),
]


@pytest.mark.parametrize("flags", [0, UNMAP], ids=["keep", "unmap"])
@pytest.mark.parametrize(("block_bytes", "sector", "count", "whole"), UNALIGNED)
def test_zeros_of_less_than_the_hosts_blocks_are_stored(
    disk: BlockDriver,
    image: Path,
    monkeypatch: pytest.MonkeyPatch,
    flags: int,
    block_bytes: int,
    sector: int,
    count: int,
    whole: tuple[int, int] | None,
) -> None:
    host = Blocks(monkeypatch, block_bytes)
    assert disk.request(WRITE_ZEROES, 0, out=[ranges((sector, count, flags))]).status == OK
    expected = bytearray(FULL)
    expected[sector * SECTOR : (sector + count) * SECTOR] = bytes(count * SECTOR)
    assert image.read_bytes() == expected
    at, n = whole or (0, 0)
    call = (HOLE if flags else ZERO, at * SECTOR, n * SECTOR)
    assert host.calls == ([call] if whole else [])


@pytest.mark.parametrize(("block_bytes", "sector", "count", "whole"), UNALIGNED)
def test_discard_frees_the_hosts_whole_blocks(
    disk: BlockDriver,
    image: Path,
    monkeypatch: pytest.MonkeyPatch,
    block_bytes: int,
    sector: int,
    count: int,
    whole: tuple[int, int] | None,
) -> None:
    host = Blocks(monkeypatch, block_bytes)
    assert disk.request(DISCARD, 0, out=[ranges((sector, count, 0))]).status == OK
    at, n = whole or (0, 0)
    assert host.calls == ([(HOLE, at * SECTOR, n * SECTOR)] if whole else [])
    expected = bytearray(FULL)
    expected[at * SECTOR : (at + n) * SECTOR] = bytes(n * SECTOR)
    assert image.read_bytes() == expected


@pytest.mark.parametrize(
    ("kind", "sparse", "flags", "mode"),
    [
        pytest.param(DISCARD, True, 0, HOLE, id="discard"),
        pytest.param(WRITE_ZEROES, True, UNMAP, HOLE, id="zeroes-unmap"),
        pytest.param(WRITE_ZEROES, True, 0, ZERO, id="zeroes-keep"),
        pytest.param(WRITE_ZEROES, False, UNMAP, ZERO, id="zeroes-unmap-on-a-full-image"),
    ],
)
def test_range_becomes_one_call_per_segment(
    image: Path, calls: list[Call], kind: int, sparse: bool, flags: int, mode: int
) -> None:
    disk = BlockDriver.start(BlockSpec(str(image), sparse=sparse))
    segments = ranges((1, 2, flags), (0, 0, flags), (SECTORS - 1, 1, flags))
    answer = disk.request(kind, 0, out=[segments])
    assert (answer.status, answer.used_len) == (OK, 1)
    assert calls == [
        (mode, SECTOR, 2 * SECTOR),
        (mode, (SECTORS - 1) * SECTOR, SECTOR),
    ]
    disk.close()


@pytest.mark.parametrize("flags", [0, UNMAP], ids=["keep", "unmap"])
@pytest.mark.parametrize("native", [True, False], ids=["fallocate", "fallback"])
def test_write_zeroes_reads_back_as_zeros(
    disk: BlockDriver, image: Path, monkeypatch: pytest.MonkeyPatch, flags: int, native: bool
) -> None:
    if not native:
        without_fallocate(monkeypatch)
    assert disk.request(WRITE_ZEROES, 0, out=[ranges((3, 2500, flags))]).status == OK
    expected = bytearray(FULL)
    expected[3 * SECTOR : 2503 * SECTOR] = bytes(2500 * SECTOR)
    assert image.read_bytes() == expected


def test_write_zeroes_without_unmap_keeps_the_host_blocks(disk: BlockDriver, image: Path) -> None:
    before = os.stat(image).st_blocks
    assert disk.request(WRITE_ZEROES, 0, out=[ranges((0, SECTORS, 0))]).status == OK
    assert os.stat(image).st_blocks >= before


def test_write_zeroes_is_stable_at_once_for_a_driver_without_flush(
    image: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk = BlockDriver.start(BlockSpec(str(image)), without=1 << VIRTIO_BLK_F_FLUSH)
    flushed: list[int] = []
    monkeypatch.setattr(os, "fdatasync", flushed.append)
    assert disk.request(WRITE_ZEROES, 0, out=[ranges((0, 1, UNMAP))]).status == OK
    assert len(flushed) == 1
    disk.close()


def test_segments_may_be_cut_anywhere(disk: BlockDriver, calls: list[Call]) -> None:
    segments = ranges((1, 1, 0), (5, 1, 0))
    answer = disk.raw_request(
        DISCARD, 0, segments, header_cuts=[7, 20, 1], out_cuts=[15, 5], into=[1]
    )
    assert answer.status == OK
    assert calls == [(HOLE, SECTOR, SECTOR), (HOLE, 5 * SECTOR, SECTOR)]


BAD_RANGES = [
    pytest.param(DISCARD, b"", IOERR, id="none"),
    pytest.param(DISCARD, ranges((0, 1, 0))[:15], IOERR, id="short"),
    pytest.param(DISCARD, ranges((0, 1, 0)) + b"\0", IOERR, id="odd"),
    pytest.param(DISCARD, ranges(*[(0, 1, 0)] * (MAX_SEGMENTS + 1)), IOERR, id="too-many"),
    pytest.param(DISCARD, ranges((0, 1, UNMAP)), UNSUPP, id="discard-unmap"),
    pytest.param(DISCARD, ranges((0, 1, 2)), UNSUPP, id="discard-reserved"),
    pytest.param(DISCARD, ranges((SECTORS, 1, 0)), IOERR, id="after-the-end"),
    pytest.param(DISCARD, ranges((SECTORS - 1, 2, 0)), IOERR, id="across-the-end"),
    pytest.param(DISCARD, ranges(((1 << 64) - 1, 2, 0)), IOERR, id="wraps"),
    pytest.param(DISCARD, ranges((SECTORS + 1, 0, 0)), IOERR, id="nothing-after-the-end"),
    pytest.param(DISCARD, ranges((0, 0xFFFF_FFFF, 0)), IOERR, id="huge"),
    pytest.param(DISCARD, ranges((0, MAX_DISCARD_SECTORS + 1, 0)), IOERR, id="discard-limit"),
    pytest.param(WRITE_ZEROES, ranges((0, 1, 2)), UNSUPP, id="zeroes-reserved"),
    pytest.param(WRITE_ZEROES, ranges((0, 1, 0x8000_0001)), UNSUPP, id="zeroes-reserved-high"),
    pytest.param(
        WRITE_ZEROES, ranges((0, MAX_WRITE_ZEROES_SECTORS + 1, 0)), IOERR, id="zeroes-limit"
    ),
    pytest.param(WRITE_ZEROES, ranges((SECTORS, 1, UNMAP)), IOERR, id="zeroes-after-the-end"),
]


@pytest.mark.parametrize(("kind", "payload", "status"), BAD_RANGES)
def test_bad_range_is_refused(
    disk: BlockDriver, calls: list[Call], kind: int, payload: bytes, status: int
) -> None:
    answer = disk.request(kind, 0, out=[payload] if payload else [])
    assert (answer.status, answer.used_len, calls) == (status, 1, [])


@pytest.mark.parametrize(
    ("kind", "limit"),
    [(DISCARD, MAX_DISCARD_SECTORS), (WRITE_ZEROES, MAX_WRITE_ZEROES_SECTORS)],
    ids=["discard", "write-zeroes"],
)
def test_limit_holds_on_a_disk_that_is_larger(
    image: Path, calls: list[Call], kind: int, limit: int
) -> None:
    os.truncate(image, 2 * MAX_DISCARD_SECTORS * SECTOR)
    disk = BlockDriver.start(BlockSpec(str(image)))
    assert disk.request(kind, 0, out=[ranges((1, limit, 0))]).status == OK
    assert [length for _, _, length in calls] == [limit * SECTOR]
    assert disk.request(kind, 0, out=[ranges((1, limit + 1, 0))]).status == IOERR
    assert len(calls) == 1
    disk.close()


def test_bad_last_segment_leaves_the_first_alone(disk: BlockDriver, calls: list[Call]) -> None:
    answer = disk.request(DISCARD, 0, out=[ranges((0, 1, 0), (SECTORS, 1, 0))])
    assert (answer.status, calls) == (IOERR, [])


@pytest.mark.parametrize(
    ("kind", "bit"),
    [(DISCARD, VIRTIO_BLK_F_DISCARD), (WRITE_ZEROES, VIRTIO_BLK_F_WRITE_ZEROES)],
    ids=["discard", "write-zeroes"],
)
def test_feature_that_was_not_negotiated_is_unsupported(
    image: Path, calls: list[Call], kind: int, bit: int
) -> None:
    disk = BlockDriver.start(BlockSpec(str(image)), without=1 << bit)
    answer = disk.request(kind, 0, out=[ranges((0, 1, 0))])
    assert (answer.status, calls) == (UNSUPP, [])
    disk.close()


def test_discard_is_unsupported_on_a_full_image(image: Path, calls: list[Call]) -> None:
    disk = BlockDriver.start(BlockSpec(str(image), sparse=False))
    assert disk.request(DISCARD, 0, out=[ranges((0, 1, 0))]).status == UNSUPP
    assert calls == []
    disk.close()
