# SPDX-License-Identifier: BSD-3-Clause
"""Files that cannot be a policy, such as directories and devices."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from seccomp.errors import PolicyError
from seccomp.sources import read_sources

if TYPE_CHECKING:
    from pathlib import Path


def test_missing_policy_is_named(tmp_path: Path) -> None:
    with pytest.raises(PolicyError, match=r"policy .*/no.policy does not exist"):
        read_sources(str(tmp_path / "no.policy"))


def test_directory_is_refused(tmp_path: Path) -> None:
    with pytest.raises(PolicyError, match="is not a regular file"):
        read_sources(str(tmp_path))


def test_fifo_is_refused_without_waiting(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    with pytest.raises(PolicyError, match="is not a regular file"):
        read_sources(str(tmp_path / "fifo"))


def test_endless_device_is_refused() -> None:
    with pytest.raises(PolicyError, match="is not a regular file"):
        read_sources("/dev/zero")


def test_huge_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"#" * 1_000_000)
    with pytest.raises(PolicyError, match="larger than 262144 bytes"):
        read_sources(str(tmp_path / "x"))


def test_symlink_loop_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x").symlink_to("x")
    with pytest.raises(PolicyError, match="Too many levels"):
        read_sources(str(tmp_path / "x"))


def test_include_with_nul_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"@include a\0b\n")
    with pytest.raises(PolicyError, match="NUL in the path"):
        read_sources(str(tmp_path / "x"))


def test_too_many_files_are_refused(tmp_path: Path) -> None:
    for number in range(70):
        (tmp_path / f"{number}").write_text(f"@include {number + 1}\n")
    with pytest.raises(PolicyError, match="more than 64 files"):
        read_sources(str(tmp_path / "0"))
