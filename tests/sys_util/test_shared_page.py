# SPDX-License-Identifier: BSD-3-Clause
"""A page of numbers, as its writer and its reader see it."""

from __future__ import annotations

import os

import pytest

from sys_util.errors import HostError
from sys_util.shared_page import SharedPage


def test_what_one_side_stores_the_other_reads() -> None:
    ours = SharedPage.create("counters")
    theirs = SharedPage.attach(os.dup(ours.fd))
    assert list(ours.cells) == [0] * 512
    theirs.cells[3] = (1 << 64) - 1
    assert ours.cells[3] == (1 << 64) - 1
    theirs.close()
    ours.close()


def test_page_cannot_be_resized() -> None:
    page = SharedPage.create("counters")
    with pytest.raises(PermissionError, match="not permitted"):
        os.truncate(page.fd, 0)
    with pytest.raises(PermissionError, match="not permitted"):
        os.truncate(page.fd, 8192)
    page.close()


def test_attach_closes_the_descriptor_whatever_happens() -> None:
    read_end, write_end = os.pipe()
    with pytest.raises(HostError, match="map a shared page"):
        SharedPage.attach(write_end)
    assert os.read(read_end, 1) == b""
    os.close(read_end)


def test_closed_page_is_closed_twice_without_harm() -> None:
    page = SharedPage.create("counters")
    fd = page.fd
    page.close()
    page.close()
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(fd)
