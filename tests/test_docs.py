# SPDX-License-Identifier: BSD-3-Clause
"""The documents name files that exist, and counts that are true."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from seccomp.__main__ import table

ROOT = Path(__file__).parent.parent
DOCUMENTS = (
    *("README.md", "ARCHITECTURE.md", "SECURITY.md", "CHANGELOG.md", "RELIABILITY.md"),
    "tests/bench/RESULTS.md",
)
_PATH = re.compile(r"(?<![\w~/.-])((?:[\w-]+/)+[\w.*-]*)")
_FOLDERS = {"crosvm_py", "devices", "disk", "jail", "kernel_loader", "seccomp", "sys_util", "tests"}


def named_paths(document: str) -> set[str]:
    found = _PATH.findall((ROOT / document).read_text())
    return {path for path in found if path.split("/")[0] in _FOLDERS}


@pytest.mark.parametrize("document", DOCUMENTS)
def test_every_path_exists(document: str) -> None:
    missing = [path for path in named_paths(document) if not list(ROOT.glob(path.rstrip("/")))]
    assert missing == []


def test_architecture_names_paths_at_all() -> None:
    assert len(named_paths("ARCHITECTURE.md")) > 10


def test_architecture_fits_three_pages() -> None:
    assert len((ROOT / "ARCHITECTURE.md").read_text().splitlines()) <= 190


def test_table_of_policies_is_what_the_command_prints() -> None:
    assert "\n".join(table()) in (ROOT / "SECURITY.md").read_text(), "python -m seccomp"
