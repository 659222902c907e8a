# SPDX-License-Identifier: BSD-3-Clause
"""O_DIRECT: what the kernel refuses for its alignment goes through an aligned buffer."""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING

import pytest

from devices.virtio.block.device import Block
from devices.virtio.block.spec import BlockSpec
from disk import raw
from disk.raw import direct_alignment
from sys_util.errors import ConfigError
from tests.support.block_driver import (
    IN,
    IOERR,
    OK,
    OUT,
    SECTOR,
    UNMAP,
    WRITE_ZEROES,
    BlockDriver,
    ranges,
)

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

SECTORS = 64
PATTERN = bytes(range(256)) * (SECTORS * SECTOR // 256)


class StrictKernel:
    """preadv and pwritev of a file system that wants every offset and length aligned."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, alignment: int) -> None:
        self.alignment = alignment
        self.refused = 0
        self._preadv, self._pwritev = os.preadv, os.pwritev
        monkeypatch.setattr(os, "preadv", self.preadv)
        monkeypatch.setattr(os, "pwritev", self.pwritev)

    def _check(self, buffers: Sequence[memoryview], offset: int) -> None:
        if any(part % self.alignment for part in (offset, *map(len, buffers))):
            self.refused += 1
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))

    def preadv(self, fd: int, buffers: Sequence[memoryview], offset: int) -> int:
        self._check(buffers, offset)
        return self._preadv(fd, buffers, offset)

    def pwritev(self, fd: int, buffers: Sequence[memoryview], offset: int, flags: int = 0) -> int:
        self._check(buffers, offset)
        return self._pwritev(fd, buffers, offset, flags)


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "disk.img"
    path.write_bytes(PATTERN)
    return path


@pytest.fixture(params=[512, 4096])
def kernel(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> StrictKernel:
    return StrictKernel(monkeypatch, request.param)


@pytest.fixture
def disk(image: Path, kernel: StrictKernel) -> Iterator[BlockDriver]:
    fd = os.open(image, os.O_RDWR)
    driver = BlockDriver(Block(BlockSpec("x", direct=True), fd), fd, (1 << 32) | (1 << 14))
    kernel.refused = 0
    yield driver
    driver.close()


def test_alignment_is_found_by_trying(image: Path, kernel: StrictKernel) -> None:
    fd = os.open(image, os.O_RDONLY)
    assert direct_alignment(fd) == kernel.alignment
    os.close(fd)


def test_aligned_request_goes_straight_to_guest_memory(
    disk: BlockDriver, kernel: StrictKernel
) -> None:
    assert disk.request(IN, 8, into=[4096]).data == PATTERN[4096:8192]
    assert disk.request(OUT, 16, out=[b"\x11" * 4096]).status == OK
    assert kernel.refused == 0


@pytest.mark.parametrize("sector", [0, 1, 7, 8, 63])
@pytest.mark.parametrize("cuts", [[512], [100, 412], [1] * 12 + [500]], ids=["1", "2", "13"])
def test_odd_buffers_are_bounced(
    disk: BlockDriver, image: Path, sector: int, cuts: list[int]
) -> None:
    assert disk.request(IN, sector, into=cuts).data == PATTERN[sector * SECTOR :][:SECTOR]
    payload = os.urandom(SECTOR)
    out = [payload[sum(cuts[:at]) : sum(cuts[: at + 1])] for at in range(len(cuts))]
    assert disk.request(OUT, sector, out=out).status == OK
    expected = bytearray(PATTERN)
    expected[sector * SECTOR : (sector + 1) * SECTOR] = payload
    assert image.read_bytes() == expected


def test_long_requests_are_bounced_in_pieces(
    disk: BlockDriver, image: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(raw, "_BOUNCE_BYTES", 8192)
    payload = os.urandom(30 * SECTOR)
    assert disk.request(OUT, 3, out=[payload[:100], payload[100:]]).status == OK
    answer = disk.request(IN, 3, into=[99, 30 * SECTOR - 99])
    assert answer == (OK, payload, 30 * SECTOR + 1)
    assert image.read_bytes()[: 3 * SECTOR] == PATTERN[: 3 * SECTOR]
    assert image.read_bytes()[33 * SECTOR :] == PATTERN[33 * SECTOR :]


def test_zeros_are_bounced_too(
    disk: BlockDriver, image: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: int) -> None:
        raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))

    monkeypatch.setattr(raw, "fallocate", refuse)
    assert disk.request(WRITE_ZEROES, 0, out=[ranges((5, 9, UNMAP))]).status == OK
    expected = bytearray(PATTERN)
    expected[5 * SECTOR : 14 * SECTOR] = bytes(9 * SECTOR)
    assert image.read_bytes() == expected


def test_image_that_shrank_is_an_error(disk: BlockDriver, image: Path) -> None:
    os.truncate(image, 8 * SECTOR)
    assert disk.request(IN, 8, into=[100, 412]).status == IOERR
    assert disk.request(OUT, 9, out=[bytes(100), bytes(411)]).status == IOERR


def test_end_that_direct_cannot_reach_is_hidden_and_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lines: list[str]
) -> None:
    path = tmp_path / "disk.img"
    path.write_bytes(bytes(4096 + 512))
    StrictKernel(monkeypatch, 4096)
    monkeypatch.setattr(os, "O_DIRECT", 0)
    disk = BlockDriver.start(BlockSpec(str(path), direct=True))
    reason = "4608 bytes is not a multiple of 4096 (as direct needs it)"
    assert lines == [f"--block {path}: {reason}: the guest does not see the last 512"]
    assert disk.device.config()[:8] == (8).to_bytes(8, "little")
    assert disk.request(IN, 7, into=[SECTOR]).status == OK
    assert disk.request(IN, 8, into=[SECTOR]).status == IOERR
    disk.close()


def test_real_direct_image_reads_and_writes(image: Path) -> None:
    try:
        disk = BlockDriver.start(BlockSpec(str(image), direct=True))
    except ConfigError:
        pytest.skip("no O_DIRECT on the file system of the temporary folder")
    payload = os.urandom(SECTOR)
    assert disk.request(OUT, 3, out=[payload[:7], payload[7:]]).status == OK
    assert disk.request(IN, 3, into=[5, 507]).data == payload
    disk.close()
