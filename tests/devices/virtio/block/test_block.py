# SPDX-License-Identifier: BSD-3-Clause
"""The block device, request by request, however the driver cuts them into buffers."""

from __future__ import annotations

import errno
import os
import struct
from typing import TYPE_CHECKING

import pytest

from devices.virtio.block import device as block_module
from devices.virtio.block.device import (
    VIRTIO_BLK_F_BLK_SIZE,
    VIRTIO_BLK_F_DISCARD,
    VIRTIO_BLK_F_FLUSH,
    VIRTIO_BLK_F_MQ,
    VIRTIO_BLK_F_RO,
    VIRTIO_BLK_F_SEG_MAX,
    VIRTIO_BLK_F_WRITE_ZEROES,
    Block,
)
from devices.virtio.block.spec import BlockSpec
from tests.support.block_driver import (
    DISCARD,
    FLUSH,
    GET_ID,
    IN,
    IOERR,
    NO_STATUS,
    OK,
    OUT,
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

SECTORS = 256
PATTERN = b"".join(struct.pack("<Q", number) for number in range(SECTORS * SECTOR // 8))


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "disk.img"
    path.write_bytes(PATTERN)
    return path


@pytest.fixture
def disk(image: Path) -> Iterator[BlockDriver]:
    driver = BlockDriver.start(BlockSpec(str(image), id="serial-42"))
    yield driver
    driver.close()


# What is offered


@pytest.mark.parametrize(
    ("spec", "own"),
    [
        pytest.param(
            {}, {VIRTIO_BLK_F_WRITE_ZEROES, VIRTIO_BLK_F_DISCARD}, id="sparse-and-writable"
        ),
        pytest.param({"sparse": False}, {VIRTIO_BLK_F_WRITE_ZEROES}, id="not-sparse"),
        pytest.param({"read_only": True}, {VIRTIO_BLK_F_RO}, id="read-only"),
    ],
)
def test_features_depend_on_the_spec(image: Path, spec: dict[str, bool], own: set[int]) -> None:
    every = {VIRTIO_BLK_F_SEG_MAX, VIRTIO_BLK_F_BLK_SIZE, VIRTIO_BLK_F_FLUSH, VIRTIO_BLK_F_MQ}
    fd = os.open(image, os.O_RDONLY)
    device = Block(
        BlockSpec("x", sparse=spec.get("sparse", True), read_only=spec.get("read_only", False)), fd
    )
    assert device.features() == sum(1 << bit for bit in every | own)
    os.close(fd)


def test_config_is_laid_out_as_in_the_specification(image: Path) -> None:
    fd = os.open(image, os.O_RDONLY)
    config = Block(BlockSpec("x", block_size=4096, num_queues=3), fd).config()
    os.close(fd)
    expected = {
        (0, "<Q"): SECTORS,  # capacity
        (8, "<I"): 0,  # size_max
        (12, "<I"): 254,  # seg_max
        (16, "<I"): 0,  # geometry
        (20, "<I"): 4096,  # blk_size
        (24, "<Q"): 0,  # topology
        (32, "<B"): 0,  # writeback
        (34, "<H"): 3,  # num_queues
        (36, "<I"): block_module.MAX_DISCARD_SECTORS,
        (40, "<I"): block_module.MAX_SEGMENTS,  # max_discard_seg
        (44, "<I"): 8,  # discard_sector_alignment
        (48, "<I"): block_module.MAX_WRITE_ZEROES_SECTORS,
        (52, "<I"): block_module.MAX_SEGMENTS,  # max_write_zeroes_seg
        (56, "<B"): 1,  # write_zeroes_may_unmap
    }
    assert len(config) == 60
    assert {
        (at, form): struct.unpack_from(form, config, at)[0] for at, form in expected
    } == expected


def test_queues_all_serve_the_same_disk(image: Path) -> None:
    fd = os.open(image, os.O_RDONLY)
    device = Block(BlockSpec("x", num_queues=4), fd)
    assert device.queue_sizes == (256, 256, 256, 256)
    os.close(fd)


# Reading and writing


def test_read_gives_the_sectors_and_counts_the_status(disk: BlockDriver) -> None:
    answer = disk.request(IN, 3, into=[2 * SECTOR])
    assert answer == (OK, PATTERN[3 * SECTOR : 5 * SECTOR], 2 * SECTOR + 1)


def test_write_lands_at_its_sector_and_nowhere_else(disk: BlockDriver, image: Path) -> None:
    answer = disk.request(OUT, 9, out=[b"\xab" * SECTOR])
    assert (answer.status, answer.used_len) == (OK, 1)
    expected = bytearray(PATTERN)
    expected[9 * SECTOR : 10 * SECTOR] = b"\xab" * SECTOR
    assert image.read_bytes() == expected


CUTS = [
    pytest.param([512], [512, 1], id="plain"),
    pytest.param([1, 511], [1, 510, 1, 1], id="odd"),
    pytest.param([100, 200, 212], [513], id="status-in-the-data-buffer"),
    pytest.param([511, 1], [300, 213], id="status-after-the-cut"),
    pytest.param([0, 512, 0], [0, 512, 0, 1, 0], id="empty-descriptors"),
]


@pytest.mark.parametrize("header", [[16], [15, 1], [1] * 16, [4, 4, 8]], ids=str)
@pytest.mark.parametrize(("out", "into"), CUTS)
def test_framing_makes_no_difference(
    disk: BlockDriver, header: list[int], out: list[int], into: list[int]
) -> None:
    payload = os.urandom(SECTOR)
    write = disk.raw_request(OUT, 7, payload, header_cuts=header, out_cuts=out, into=[1])
    read = disk.raw_request(IN, 7, b"", header_cuts=header, out_cuts=[], into=into)
    assert (write.status, write.used_len) == (OK, 1)
    assert read == (OK, payload, SECTOR + 1)


def test_header_and_payload_may_share_a_buffer(disk: BlockDriver) -> None:
    payload = os.urandom(SECTOR)
    answer = disk.raw_request(OUT, 1, payload, header_cuts=[], out_cuts=[16 + SECTOR], into=[1])
    assert answer.status == OK
    assert disk.request(IN, 1, into=[SECTOR]).data == payload


def test_read_into_hundreds_of_buffers(disk: BlockDriver) -> None:
    into = [SECTOR // 2] * 400 + [128] * 100
    before = disk.request(IN, 0, into=into, indirect=True)
    assert before.status == OK
    assert before.data == PATTERN[: sum(into)]


def test_vectors_beyond_iov_max_are_cut(disk: BlockDriver, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("disk.raw.IOV_MAX", 3)
    payload = os.urandom(10 * SECTOR)
    out = [payload[at : at + 256] for at in range(0, len(payload), 256)]
    assert disk.request(OUT, 20, out=out, indirect=True).status == OK
    assert disk.request(IN, 20, into=[256] * 20, indirect=True).data == payload


def test_short_transfers_are_continued(disk: BlockDriver, monkeypatch: pytest.MonkeyPatch) -> None:
    real_read, real_write = os.preadv, os.pwritev

    def short_read(fd: int, buffers: list[memoryview], offset: int) -> int:
        return real_read(fd, [buffers[0][:100]], offset)

    def short_write(fd: int, buffers: list[memoryview], offset: int, flags: int) -> int:
        return real_write(fd, [buffers[0][:100]], offset, flags)

    monkeypatch.setattr(os, "preadv", short_read)
    monkeypatch.setattr(os, "pwritev", short_write)
    payload = os.urandom(2 * SECTOR)
    assert disk.request(OUT, 5, out=[payload]).status == OK
    assert disk.request(IN, 5, into=[2 * SECTOR]) == (OK, payload, 2 * SECTOR + 1)


# Flush and id


@pytest.mark.usefixtures("fake_calls")
def test_flush_reaches_the_image(disk: BlockDriver, monkeypatch: pytest.MonkeyPatch) -> None:
    flushed: list[int] = []
    monkeypatch.setattr(os, "fdatasync", flushed.append)
    assert disk.request(FLUSH, 0).status == OK
    assert len(flushed) == 1


@pytest.mark.usefixtures("fake_calls")
@pytest.mark.parametrize(
    ("features_without", "flags"),
    [(0, 0), (1 << VIRTIO_BLK_F_FLUSH, os.RWF_DSYNC)],
    ids=["driver-flushes", "driver-cannot-flush"],
)
def test_writes_are_stable_at_once_for_a_driver_without_flush(
    image: Path, monkeypatch: pytest.MonkeyPatch, features_without: int, flags: int
) -> None:
    disk = BlockDriver.start(BlockSpec(str(image)), without=features_without)
    used: list[int] = []
    real = os.pwritev

    def spy(fd: int, buffers: list[memoryview], offset: int, flags: int) -> int:
        used.append(flags)
        return real(fd, buffers, offset, flags)

    monkeypatch.setattr(os, "pwritev", spy)
    assert disk.request(OUT, 0, out=[bytes(SECTOR)]).status == OK
    assert used == [flags]
    disk.close()


@pytest.mark.parametrize(
    ("room", "expected"),
    [
        pytest.param(20, b"serial-42" + bytes(11), id="exact"),
        pytest.param(6, b"serial", id="short"),
        pytest.param(30, b"serial-42" + bytes(11) + b"\xee" * 10, id="long"),
    ],
)
def test_get_id_fills_twenty_bytes(disk: BlockDriver, room: int, expected: bytes) -> None:
    answer = disk.request(GET_ID, 0, into=[room])
    assert (answer.status, answer.data) == (OK, expected)
    assert answer.used_len == (20 if room > 20 else room + 1)


def test_get_id_of_a_disk_without_id_is_empty(image: Path) -> None:
    disk = BlockDriver.start(BlockSpec(str(image)))
    assert disk.request(GET_ID, 0, into=[20]) == (OK, bytes(20), 21)
    disk.close()


# Refusals


@pytest.mark.parametrize(
    ("kind", "sector", "out", "into", "status"),
    [
        pytest.param(IN, SECTORS, [], [SECTOR], IOERR, id="read-after-the-end"),
        pytest.param(IN, SECTORS - 1, [], [2 * SECTOR], IOERR, id="read-across-the-end"),
        pytest.param(IN, (1 << 64) - 1, [], [SECTOR], IOERR, id="read-wraps"),
        pytest.param(IN, 1 << 55, [], [SECTOR], IOERR, id="read-offset-wraps"),
        pytest.param(IN, 0, [], [511], IOERR, id="read-odd-length"),
        pytest.param(OUT, SECTORS, [SECTOR], [], IOERR, id="write-after-the-end"),
        pytest.param(OUT, (1 << 64) - 1, [SECTOR], [], IOERR, id="write-wraps"),
        pytest.param(OUT, 0, [513], [], IOERR, id="write-odd-length"),
        pytest.param(2, 0, [], [SECTOR], UNSUPP, id="scsi"),
        pytest.param(14, 0, [16], [], UNSUPP, id="secure-erase"),
        pytest.param(0xFFFF_FFFF, 0, [SECTOR], [], UNSUPP, id="unknown"),
    ],
)
def test_impossible_request_gets_its_status_and_changes_nothing(
    disk: BlockDriver,
    image: Path,
    kind: int,
    sector: int,
    out: list[int],
    into: list[int],
    status: int,
) -> None:
    answer = disk.request(kind, sector, out=[b"\xff" * length for length in out], into=into)
    assert answer.status == status
    # The status is not counted where the bytes before it were not written (§2.7.8.2).
    assert answer.used_len == (0 if into else 1)
    assert answer.data == b"\xee" * sum(into)
    assert image.read_bytes() == PATTERN


def test_write_to_a_read_only_disk_is_an_error(image: Path) -> None:
    disk = BlockDriver.start(BlockSpec(str(image), read_only=True))
    assert disk.request(OUT, 0, out=[b"\xff" * SECTOR]).status == IOERR
    assert disk.request(FLUSH, 0).status == OK
    assert disk.request(DISCARD, 0, out=[ranges((0, 1, 0))]).status == UNSUPP
    assert disk.request(WRITE_ZEROES, 0, out=[ranges((0, 1, 0))]).status == UNSUPP
    assert disk.request(IN, 0, into=[SECTOR]).data == PATTERN[:SECTOR]
    assert image.read_bytes() == PATTERN
    disk.close()


def test_request_without_a_status_byte_comes_back_unused(disk: BlockDriver) -> None:
    answer = disk.raw_request(IN, 0, b"", header_cuts=[16], out_cuts=[], into=[])
    assert answer == (NO_STATUS, b"", 0)


def test_request_without_a_whole_header_is_an_error(disk: BlockDriver) -> None:
    answer = disk.send([b"\0" * 15], [SECTOR, 1])
    assert answer.status == IOERR
    assert disk.request(IN, 0, into=[SECTOR]).status == OK


@pytest.mark.usefixtures("fake_calls")
@pytest.mark.parametrize("number", [errno.EIO, errno.ENOSPC, errno.EFBIG])
def test_host_error_is_the_guests_ioerr(
    disk: BlockDriver, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    def fail(*_: object) -> int:
        raise OSError(number, os.strerror(number))

    for name in ("preadv", "pwritev", "fdatasync"):
        monkeypatch.setattr(os, name, fail)
    monkeypatch.setattr("disk.raw.fallocate", fail)
    assert disk.request(IN, 0, into=[SECTOR]).status == IOERR
    assert disk.request(OUT, 0, out=[bytes(SECTOR)]).status == IOERR
    assert disk.request(FLUSH, 0).status == IOERR
    assert disk.request(DISCARD, 0, out=[ranges((0, 1, 0))]).status == IOERR
    assert disk.request(WRITE_ZEROES, 0, out=[ranges((0, 1, UNMAP))]).status == IOERR


def test_image_that_shrank_is_an_error(disk: BlockDriver, image: Path) -> None:
    os.truncate(image, 10 * SECTOR + 100)
    answer = disk.request(IN, 9, into=[2 * SECTOR])
    assert answer.status == IOERR
    assert answer.used_len == SECTOR + 100
