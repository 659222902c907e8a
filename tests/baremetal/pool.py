# SPDX-License-Identifier: BSD-3-Clause
"""A running ``crosvm pool`` on this machine, and what its monitors are."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Final

import pytest

from crosvm_py.pool.client import TRIED
from tests.baremetal.vmm import PATIENCE_SECONDS, ROOT, children, eventually, name_of

if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Self

PYTHON: Final = (sys.executable, "-m", "crosvm_py")
_CLIENT: Final = Path(sys.executable).parent / "crosvm-pool-client"
# As bin/crosvm executes it; in the environment of the tests it is built where there is a cargo.
RUST: Final = (str(_CLIENT), sys.executable, "-X", TRIED, "-m", "crosvm_py", "--")
CLIENTS: Final[Sequence[object]] = (
    pytest.param(PYTHON, id="python"),
    pytest.param(
        RUST,
        id="rust",
        marks=pytest.mark.skipif(not _CLIENT.exists(), reason="built without a cargo"),
    ),
)

WAITING: Final = "crosvm-monitor"


class RunningPool:
    """One pool; use it in a ``with`` statement."""

    def __init__(
        self,
        path: Path,
        size: int,
        *options: str | Path,
        program: Sequence[str] = PYTHON,
    ) -> None:
        self.path = path
        self.size = size
        command = [*program, "pool", "--size", str(size), *map(str, options), str(path)]
        self.process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.terminate()
        self.process.communicate(timeout=PATIENCE_SECONDS)

    def waiting(self) -> list[int]:
        """Return the pids of the monitors that wait for a client."""
        return [pid for pid in children(self.process.pid) if _name(pid) == WAITING]

    def running(self) -> list[int]:
        """Return the pids of the monitors that run a VM."""
        return [pid for pid in children(self.process.pid) if _name(pid) == "crosvm"]

    def is_full(self) -> bool:
        """Wait until all monitors wait."""
        return eventually(lambda: len(self.waiting()) >= self.size)


def _name(pid: int) -> str:
    try:
        return name_of(pid)
    except (FileNotFoundError, ProcessLookupError):
        return ""
