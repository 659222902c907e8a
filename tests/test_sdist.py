# SPDX-License-Identifier: BSD-3-Clause
"""A source distribution has what is needed to build all of the program, the native parts too."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
# What git has that the distribution need not have, beside the tests.
LEFT_OUT = (".gitignore", "ruff.toml", "tests/", ".ci/")


@pytest.mark.slow
def test_source_distribution_has_every_source(tmp_path: Path) -> None:
    # Without the engine, setup.py compiles nothing to list files.
    environment = os.environ | {"CROSVM_PY_ENGINE": "no"}
    command = [sys.executable, "-W", "ignore", "setup.py", "-q", "egg_info", "-e", str(tmp_path)]
    subprocess.run(command, cwd=ROOT, env=environment, check=True, capture_output=True)
    (sources,) = tmp_path.glob("*/SOURCES.txt")
    packed = set(sources.read_text().splitlines())
    listing = subprocess.run(["git", "ls-files"], cwd=ROOT, check=True, capture_output=True)
    tracked = {os.fsdecode(name) for name in listing.stdout.splitlines()}
    wanted = {name for name in tracked if not name.startswith(LEFT_OUT)}
    assert len(wanted) > 300
    assert sorted(wanted - packed) == []
    built = {name for name in packed if name.endswith((".so", ".o", ".pyc")) or "/target/" in name}
    assert built == set()
