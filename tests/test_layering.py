# SPDX-License-Identifier: BSD-3-Clause
"""Imports point down only, every file says its licence, and none grows without bound."""

from __future__ import annotations

import ast
from configparser import ConfigParser
from pathlib import Path

import pytest

from seccomp.syscalls import ARCHITECTURES

ROOT = Path(__file__).parent.parent
ALLOWED: dict[str, frozenset[str]] = {
    "sys_util": frozenset(),
    "seccomp": frozenset({"sys_util"}),
    "kernel_loader": frozenset({"sys_util"}),
    "devices": frozenset({"sys_util"}),
    "jail": frozenset({"sys_util", "seccomp"}),
    "crosvm_py": frozenset({"sys_util", "seccomp", "kernel_loader", "devices", "jail"}),
}
SOURCES = [path for folder in ALLOWED for path in sorted((ROOT / folder).rglob("*.py"))]
TESTS = sorted((ROOT / "tests").rglob("*.py"))
MAX_LINES = 400
# Tables of the kernel's ABI are as long as the ABI.
ABI_TABLES = {
    f"seccomp/{table}_{arch}.py" for table in ("syscalls", "constants") for arch in ARCHITECTURES
}


def imported_folders(path: Path) -> set[str]:
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module.partition(".")[0])
    return found & ALLOWED.keys()


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_point_down(path: Path) -> None:
    folder = path.relative_to(ROOT).parts[0]
    assert imported_folders(path) <= ALLOWED[folder] | {folder}


@pytest.mark.parametrize("path", SOURCES + TESTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_source_has_licence_and_bounded_length(path: Path) -> None:
    lines = path.read_text().splitlines()
    has_interpreter = bool(lines) and lines[0].startswith("#!")
    assert not lines or lines[has_interpreter] == "# SPDX-License-Identifier: BSD-3-Clause"
    assert len(lines) <= MAX_LINES or str(path.relative_to(ROOT)) in ABI_TABLES


def test_tests_are_seen_by_the_layering_test() -> None:
    assert min(len(SOURCES), len(TESTS)) > 40, "the folders moved and this test reads nothing"


def test_every_folder_is_installed() -> None:
    config = ConfigParser()
    config.read(ROOT / "setup.cfg")
    folders = {str(path.parent.relative_to(ROOT)).replace("/", ".") for path in SOURCES}
    assert set(config["options"]["packages"].split()) == folders


def test_the_packages_are_ours() -> None:
    import seccomp
    import sys_util

    for package in (seccomp, sys_util):
        assert Path(str(package.__file__)).is_relative_to(ROOT)
