# SPDX-License-Identifier: BSD-3-Clause
"""Images that fail: each request has its own status, and the next one is served."""

from __future__ import annotations

import fcntl
import os
import resource

from devices.virtio.block.device import Block
from devices.virtio.block.spec import BlockSpec
from tests.support.block_driver import (
    DISCARD,
    FLUSH,
    IN,
    IOERR,
    OK,
    OUT,
    SECTOR,
    WRITE_ZEROES,
    BlockDriver,
    ranges,
)

SECTORS = 64
VERSION_1 = 1 << 32


def image() -> int:
    fd = os.memfd_create("image", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    os.ftruncate(fd, SECTORS * SECTOR)
    return fd


def drive(fd: int) -> BlockDriver:
    device = Block(BlockSpec("image"), fd)
    return BlockDriver(device, fd, device.features() | VERSION_1)


def test_image_that_cannot_be_written_fails_each_write_and_no_read(lines: list[str]) -> None:
    fd = image()
    fcntl.fcntl(fd, fcntl.F_ADD_SEALS, 0x8)  # F_SEAL_WRITE
    disk = drive(fd)
    answers = [
        disk.request(OUT, 0, out=[bytes(SECTOR)]).status,
        disk.request(IN, 0, into=[SECTOR]).status,
        disk.request(DISCARD, 0, out=[ranges((0, 8, 0))]).status,
        disk.request(WRITE_ZEROES, 0, out=[ranges((0, 8, 0))]).status,
        disk.request(FLUSH, 0).status,
        disk.request(OUT, 1, out=[bytes(SECTOR)]).status,
    ]
    assert answers == [IOERR, OK, IOERR, IOERR, OK, IOERR]
    assert lines == ["block queue 0: the image: Operation not permitted"] * 4
    assert disk.worker.counters.errors == 4
    disk.close()


def test_image_that_cannot_be_read_fails_each_read_and_no_write(lines: list[str]) -> None:
    fd = image()
    write_only = os.open(f"/proc/self/fd/{fd}", os.O_WRONLY | os.O_CLOEXEC)
    os.close(fd)
    disk = drive(write_only)
    answers = [
        disk.request(IN, 0, into=[SECTOR]),
        disk.request(OUT, 0, out=[bytes(SECTOR)]),
        disk.request(IN, 1, into=[SECTOR]),
    ]
    assert [answer.status for answer in answers] == [IOERR, OK, IOERR]
    # Nothing was stored before the status, so the driver may count on nothing.
    assert [answer.used_len for answer in answers] == [0, 1, 0]
    assert lines == ["block queue 0: the image: Bad file descriptor"] * 2
    disk.close()


def test_write_beyond_the_processes_file_size_fails_alone(lines: list[str]) -> None:
    disk = drive(image())
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (8 * SECTOR, hard))
    try:
        behind = disk.request(OUT, 8, out=[bytes(SECTOR)]).status
        before = disk.request(OUT, 7, out=[bytes(SECTOR)]).status
        across = disk.request(OUT, 7, out=[bytes(2 * SECTOR)]).status
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert (behind, before, across) == (IOERR, OK, IOERR)
    assert lines == ["block queue 0: the image: File too large"] * 2
    disk.close()


def test_faults_of_many_requests_in_one_turn_stay_apart(lines: list[str]) -> None:
    fd = image()
    disk = drive(fd)
    os.ftruncate(fd, 4 * SECTOR)
    for sector in range(8):
        header = b"\0" * 8 + sector.to_bytes(8, "little")
        disk.queue.submit([header], [SECTOR, 1])
    while disk.worker.on_kick(0):
        pass
    answers = [data[-1] for _, _, data in disk.queue.collect()]
    assert answers == [OK] * 4 + [IOERR] * 4
    disk.close()
