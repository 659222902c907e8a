# SPDX-License-Identifier: BSD-3-Clause
"""What a machine can check of the style, it checks here."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


@pytest.mark.slow
@pytest.mark.parametrize(
    "command",
    [
        pytest.param(["mypy"], id="mypy"),
        pytest.param(["ruff", "check", "."], id="ruff-check"),
        pytest.param(["ruff", "format", "--check", "."], id="ruff-format"),
        pytest.param(["codespell_lib"], id="codespell"),
    ],
)
def test_checker_finds_nothing(command: list[str]) -> None:
    run = subprocess.run(
        [sys.executable, "-m", *command], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stdout + run.stderr


@pytest.mark.parametrize("path", sorted(ROOT.glob("*/ffi/*.c")), ids=lambda path: path.name)
def test_compiler_finds_nothing(path: Path) -> None:
    warnings = ("-std=c11", "-Wall", "-Wextra", "-Wpedantic", "-Wmissing-prototypes", "-Werror")
    run = subprocess.run(
        ["cc", *warnings, "-fsyntax-only", path], capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stderr
