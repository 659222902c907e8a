# SPDX-License-Identifier: BSD-3-Clause
"""Hosts that give less: a guest runs there, or one line says what is missing and what to do.

``crosvm doctor`` has to come to the same verdict.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Final, NamedTuple

import pytest

from tests.baremetal.vmm import PATIENCE_SECONDS, ROOT
from tests.guests.baremetal.build import build_guest
from tests.support.places import (
    make_kvm_for_all,
    ordinary,
    root_of_namespace,
    without,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    At = Callable[..., subprocess.CompletedProcess[str]]

pytestmark = [
    pytest.mark.kvm,
    pytest.mark.slow,
    pytest.mark.skipif(os.geteuid() != 0, reason="only root can make these places"),
]

USER: Final = 61_000
CAPABILITIES: Final = (
    *("setuid", "setgid", "setpcap", "setfcap", "kill", "dac_override", "sys_admin"),
    *("sys_chroot", "net_admin", "sys_resource", "chown", "fowner"),
)


class Place(NamedTuple):
    """What stands before the command, and what is said there; nothing where guests run."""

    name: str
    prefix: Sequence[str]
    refusal: str = ""


RUNS: Final = (
    Place("root", []),
    Place("user", ordinary(USER)),
    Place("root-of-root", root_of_namespace("0 0 1")),
    Place("root-of-a-container", root_of_namespace("0 100000 65536")),
    Place("root-of-a-user", root_of_namespace("0 1000 1")),
    Place("root-of-two-users", root_of_namespace("0 1000 1\n1 100000 65536")),
    Place("root-made-by-a-user", [*ordinary(USER), "unshare", "-Ur"]),
    Place("user-made-by-a-user", [*ordinary(USER), "unshare", "-U", "--map-current-user"]),
    Place("no-capability", without("all")),
    *(Place(f"without-{each}", without(each)) for each in CAPABILITIES),
    Place("container-without-capability", [*root_of_namespace("0 100000 65536"), *without("all")]),
)


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    """Make a directory for every user, with a guest, and one that they may write to."""
    with TemporaryDirectory(dir="/tmp") as name:
        folder = Path(name)
        folder.chmod(0o755)
        build_guest("hello", folder).chmod(0o755)
        (folder / "shared").mkdir()
        (folder / "shared").chmod(0o1777)
        yield folder


@pytest.fixture(scope="module")
def kvm_for_all(folder: Path) -> list[str]:
    return make_kvm_for_all(folder / "kvm")


@pytest.fixture(scope="module")
def crosvm_at(folder: Path, kvm_for_all: list[str]) -> At:
    def run(place: Place, *words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*kvm_for_all, *place.prefix, sys.executable, "-m", "crosvm_py", *words],
            cwd=ROOT,
            env={"PATH": os.environ["PATH"], "HOME": "/nonexistent"},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=PATIENCE_SECONDS,
            check=False,
        )

    return run


@pytest.mark.parametrize("place", RUNS, ids=lambda place: place.name)
def test_guest_runs_with_every_kind_of_process(place: Place, folder: Path, crosvm_at: At) -> None:
    vsock = f"cid=3,socket={folder}/shared/v"
    done = crosvm_at(place, "run", "-m", "16", "--vsock", vsock, f"{folder}/hello.elf")
    assert "hello from the guest" in done.stdout, done.stderr
    assert done.returncode == 0
    assert "ERROR" not in done.stderr
