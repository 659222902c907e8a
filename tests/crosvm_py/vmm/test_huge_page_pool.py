# SPDX-License-Identifier: BSD-3-Clause
"""Huge pages from the host's pool: what is refused before anything starts."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from crosvm_py.vmm.huge_page_pool import POOLS, check_pool
from sys_util.errors import ConfigError, HostError

if TYPE_CHECKING:
    from pathlib import Path

MIB = 1 << 20


@pytest.fixture
def pools(tmp_path: Path) -> str:
    folder = tmp_path / "hugepages-2048kB"
    folder.mkdir()
    (folder / "free_hugepages").write_text("10\n")
    (folder / "resv_hugepages").write_text("2\n")
    return str(tmp_path)


def test_pool_with_enough_pages_is_taken(pools: str) -> None:
    check_pool(2 * MIB, [10 * MIB, 6 * MIB], pools=pools)


def test_too_few_pages_say_how_many_are_free_and_what_to_do(pools: str) -> None:
    with pytest.raises(HostError, match=r"9 huge pages of 2 MiB \(the host has 8 free .*echo N >"):
        check_pool(2 * MIB, [18 * MIB], pools=pools)


@pytest.mark.parametrize(
    ("page_bytes", "size", "reason"),
    [
        (2 * MIB, 3 * MIB, "huge pages of 2 MiB do not divide 3 MiB"),
        (1 << 30, 1 << 30, "no huge pages of 1048576 KiB"),
        (1 << 12, 1 << 30, "no huge pages of 4 KiB"),
    ],
)
def test_pages_that_cannot_be_are_refused(
    pools: str, page_bytes: int, size: int, reason: str
) -> None:
    with pytest.raises(ConfigError, match=reason):
        check_pool(page_bytes, [size], pools=pools)


def test_pool_of_a_strange_kernel_is_the_hosts_fault(pools: str, tmp_path: Path) -> None:
    (tmp_path / "hugepages-2048kB/free_hugepages").write_text("many")
    with pytest.raises(HostError, match="read"):
        check_pool(2 * MIB, [2 * MIB], pools=pools)


def test_pools_are_where_linux_has_them() -> None:
    assert POOLS == "/sys/kernel/mm/hugepages"
