# SPDX-License-Identifier: BSD-3-Clause
"""Debian's kernels, where the guest scripts have already fetched or built one."""

from __future__ import annotations

from pathlib import Path

import pytest

from kernel_loader.image import open_kernel

CACHE = Path(__file__).parents[2] / ".cache"
KERNELS = sorted(
    path
    for pattern in ("**/vmlinuz*", "**/bzImage", "**/vmlinux")
    for path in CACHE.glob(pattern)
    if path.is_file() and not path.is_symlink()
)[:4]


@pytest.mark.slow
@pytest.mark.skipif(not KERNELS, reason=f"no kernel below {CACHE}")
@pytest.mark.parametrize("path", KERNELS, ids=lambda path: path.name)
def test_open_kernel_real_kernel_starts_in_64_bit_mode(path: Path) -> None:
    image = open_kernel(str(path))
    image.check([(0, 0xA_0000), (0x10_0000, 0x1000_0000)], 0x10_0000)
    image.close()
    assert image.protocol == "linux64"
    assert image.segments[0].gpa >= 0x10_0000
