# SPDX-License-Identifier: BSD-3-Clause
"""Check that the host has the huge pages that guest memory is to be made of (hugetlbfs)."""

from __future__ import annotations

from sys_util.errors import ConfigError, HostError
from sys_util.typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterable

POOLS: Final = "/sys/kernel/mm/hugepages"
_MIB: Final = 1 << 20


def check_pool(page_bytes: int, sizes: Iterable[int], *, pools: str = POOLS) -> None:
    """Check that regions of guest memory with these ``sizes`` can be made of huge pages.

    Raises:
        ConfigError: pages of this size do not divide a region, or there is no such size.
        HostError: too few of them are free.
    """
    needed = 0
    for size in sizes:
        if size % page_bytes:
            raise ConfigError(
                f"huge pages of {page_bytes // _MIB} MiB do not divide {size / _MIB:.10g} MiB of "
                "memory: take another size, or smaller pages"
            )
        needed += size // page_bytes
    folder = f"{pools}/hugepages-{page_bytes >> 10}kB"
    try:
        free = _number(f"{folder}/free_hugepages") - _number(f"{folder}/resv_hugepages")
    except FileNotFoundError:
        raise ConfigError(
            f"the host has no huge pages of {page_bytes >> 10} KiB (it has those in {pools})"
        ) from None
    except (OSError, ValueError) as error:
        raise HostError("read", folder) from error
    if free < needed:
        raise HostError(
            "take",
            f"{needed} huge pages of {page_bytes // _MIB} MiB",
            f"the host has {free} free ones; as root: echo N >{folder}/nr_hugepages",
        )


def _number(path: str) -> int:
    with open(path, encoding="ascii") as file:
        return int(file.read())
