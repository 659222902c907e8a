# SPDX-License-Identifier: BSD-3-Clause
"""Run Rust's own tools on the engine."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

CRATE = Path(__file__).parents[2] / "engine"
# The only files that may contain ``unsafe``: guest memory, and system calls with the C interface.
UNSAFE = {"memory.rs", "sys.rs"}

pytestmark = pytest.mark.skipif(not shutil.which("cargo"), reason="there is no cargo here")


def cargo(*words: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"CARGO_TARGET_DIR": str(CRATE / "target")}
    return subprocess.run(
        ["cargo", *words],
        cwd=CRATE,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    "words",
    [
        pytest.param(["test", "--locked", "--offline", "--quiet"], id="test"),
        pytest.param(["clippy", "--offline", "--all-targets", "--", "-Dwarnings"], id="clippy"),
        pytest.param(["fmt", "--check"], id="format"),
    ],
)
def test_cargo_finds_nothing(words: list[str]) -> None:
    if cargo(words[0], "--help").returncode:
        pytest.skip(f"this cargo has no {words[0]}")  # Debian's has neither clippy nor fmt
    done = cargo(*words)
    assert done.returncode == 0, done.stdout + done.stderr


def test_unsafe_code_is_in_two_files() -> None:
    sources = sorted((CRATE / "src").glob("*.rs"))
    assert {path.name for path in sources} > UNSAFE
    for path in sources:
        says = re.search(r"\bunsafe\b(?! *`)(?!_code)", path.read_text())
        assert path.name in UNSAFE or not says, path.name


def test_crate_needs_no_other() -> None:
    assert (CRATE / "Cargo.lock").read_text().count("[[package]]") == 1
