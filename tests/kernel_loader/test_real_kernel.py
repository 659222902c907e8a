# SPDX-License-Identifier: BSD-3-Clause
"""Debian's kernels, where the guest scripts have already fetched or built one."""

from __future__ import annotations

from pathlib import Path

import pytest

from kernel_loader.image import open_kernel

GUESTS = Path(__file__).parents[2] / ".cache" / "guests"
KERNELS = sorted((*GUESTS.glob("*/bzImage"), *GUESTS.glob("*/vmlinux")))
NAMES = [f"{path.parent.name.partition('-')[0]}-{path.name}" for path in KERNELS]


@pytest.mark.slow
@pytest.mark.skipif(not KERNELS, reason=f"no kernel in {GUESTS}")
@pytest.mark.parametrize("path", KERNELS, ids=NAMES)
def test_open_kernel_real_kernel_starts_in_64_bit_mode(path: Path) -> None:
    image = open_kernel(str(path))
    image.check([(0, 0xA_0000), (0x10_0000, 0x1000_0000)], 0x10_0000)
    image.close()
    assert image.protocol == "linux64"
    assert image.segments[0].gpa >= 0x10_0000
