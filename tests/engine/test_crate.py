# SPDX-License-Identifier: BSD-3-Clause
"""Run Rust's own tools on our crates."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
# The only files that may contain ``unsafe``: guest memory, system calls, and the C interface.
UNSAFE = {"engine": {"abi.rs", "memory.rs", "sys.rs"}, "launcher": {"sys.rs"}, "forge": {"sys.rs"}}

pytestmark = pytest.mark.skipif(not shutil.which("cargo"), reason="there is no cargo here")


@pytest.fixture(params=UNSAFE)
def crate(request: pytest.FixtureRequest) -> Path:
    return ROOT / str(request.param)


def cargo(crate: Path, *words: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"CARGO_TARGET_DIR": str(crate / "target")}
    return subprocess.run(
        ["cargo", *words],
        cwd=crate,
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
def test_cargo_finds_nothing(crate: Path, words: list[str]) -> None:
    if cargo(crate, words[0], "--help").returncode:
        pytest.skip(f"this cargo has no {words[0]}")  # Debian's has neither clippy nor fmt
    done = cargo(crate, *words)
    assert done.returncode == 0, done.stdout + done.stderr


def test_unsafe_code_is_in_few_files(crate: Path) -> None:
    unsafe = UNSAFE[crate.name]
    sources = sorted((crate / "src").glob("*.rs"))
    assert {path.name for path in sources} > unsafe
    for path in sources:
        says = re.search(r"\bunsafe\b(?! *`)(?!_code)", path.read_text())
        assert path.name in unsafe or not says, path.name


def test_crate_needs_no_other(crate: Path) -> None:
    assert (crate / "Cargo.lock").read_text().count("[[package]]") == 1
