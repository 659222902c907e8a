# SPDX-License-Identifier: BSD-3-Clause
"""Hosts that give less: a guest runs there, or one line says what is missing and what to do.

``crosvm doctor`` has to come to the same verdict.
"""

from __future__ import annotations

import errno
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Final, NamedTuple

import pytest

from crosvm_py.exit_status import VmExit
from tests.baremetal.vmm import PATIENCE_SECONDS, ROOT
from tests.guests.baremetal.build import build_guest
from tests.support.places import (
    denied,
    hardened,
    limited,
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
    """What stands before the command, and what is said there; nothing where guests run.

    ``uid`` is the user there as the host knows it, who has policies compiled once: that takes
    longer than all the rest. Without one they are compiled each time.
    """

    name: str
    prefix: Sequence[str]
    refusal: str = ""
    uid: int | None = 0


RUNS: Final = (
    Place("root", []),
    Place("user", ordinary(USER), uid=USER),
    Place("root-of-root", root_of_namespace("0 0 1")),
    Place("root-of-a-container", root_of_namespace("0 100000 65536"), uid=100_000),
    Place("root-of-a-user", root_of_namespace("0 1000 1"), uid=1000),
    Place("root-of-two-users", root_of_namespace("0 1000 1\n1 100000 65536"), uid=1000),
    Place("root-made-by-a-user", [*ordinary(USER), "unshare", "-Ur"], uid=USER),
    Place(
        "user-made-by-a-user", [*ordinary(USER), "unshare", "-U", "--map-current-user"], uid=USER
    ),
    Place("no-capability", without("all")),
    *(Place(f"without-{each}", without(each)) for each in CAPABILITIES),
    Place("root-where-others-make-no-user-namespaces", hardened()),
    Place(
        "container-without-capability",
        [*root_of_namespace("0 100000 65536"), *without("all")],
        uid=100_000,
    ),
)

SMALL: Final = (*root_of_namespace("0 1000 1"), "sh", "-c")
NO_NAMESPACES: Final = (*SMALL, 'echo 0 >/proc/sys/user/max_user_namespaces && exec "$@"', "sh")
NO_PROC: Final = ("unshare", "--mount", "sh", "-c", 'umount -l /proc && exec "$@"', "sh")
NO_KVM: Final = ("sh", "-c", 'mount --bind /dev/null /dev/kvm && exec "$@"', "sh")

DEBIAN: Final = r"sysctl kernel\.unprivileged_userns_clone=1.*Operation not permitted"
DENIED: Final = r"(denied here|Operation not permitted|what filters system calls here)"

REFUSES: Final = (
    *(Place(f"{count}-files", limited(nofile=count), r"ulimit -n") for count in (12, 16, 20)),
    *(
        Place(
            f"{count}-processes",
            [*ordinary(USER), *limited(nproc=count)],
            r"no more processes",
            uid=USER,
        )
        for count in (2, 3, 4)
    ),
    Place(
        "no-file-size",
        limited(fsize=0),
        r"File too large \(ulimit -f raises|policies: Operation canceled",
        uid=None,
    ),
    Place("no-namespaces", NO_NAMESPACES, r"user\.max_user_namespaces.*No space left", uid=1000),
    Place("user-who-makes-no-user-namespaces", [*hardened(), *ordinary(USER)], DEBIAN, uid=USER),
    *(
        Place(
            f"mount-{errno.errorcode[reason]}",
            denied("mount", reason),
            r"rng \(pid \d+\): .*pivot into an empty, read-only root \(.*AppArmor",
        )
        for reason in (errno.EPERM, errno.EACCES)
    ),
    Place("no-kvm", NO_KVM, r"/dev/kvm \(this is not KVM\)"),
    Place("no-proc", NO_PROC, r"mount a proc\(5\) at /proc", uid=None),
    *(
        Place(
            f"{call}-{errno.errorcode[reason]}",
            denied(call, reason),
            f"({words}).*{DENIED}",
            uid=None if call in ("memfd_create", "seccomp") else 0,  # the compiler needs them, too
        )
        for call, words in (
            ("pidfd_open", r"start "),
            ("clone", r"start "),
            ("epoll_create1", r"make the virtual machine"),
            ("memfd_create", r"memory|start |policies"),
            ("seccomp", r"filter|seccomp\(2\)"),
            ("pivot_root", r"rng \(pid \d+\): .*pivot into an empty"),
        )
        for reason in (errno.EPERM, errno.ENOSYS)
    ),
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
        kept = f"{folder}/shared/cache-{place.uid}"
        cache = {} if place.uid is None else {"XDG_CACHE_HOME": kept}
        return subprocess.run(
            [*kvm_for_all, *place.prefix, sys.executable, "-m", "crosvm_py", *words],
            cwd=ROOT,
            env={"PATH": os.environ["PATH"], "HOME": "/nonexistent", **cache},
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


@pytest.mark.parametrize("place", [*RUNS, *REFUSES], ids=lambda place: place.name)
def test_doctor_says_whether_a_guest_runs(place: Place, crosvm_at: At) -> None:
    done = crosvm_at(place, "doctor", "--json")
    runs = not place.refusal
    assert json.loads(done.stdout)["can_run"] is runs, done.stdout
    assert done.returncode == (0 if runs else 1)


@pytest.mark.parametrize("place", REFUSES, ids=lambda place: place.name)
def test_refusal_is_one_line_with_its_cause(place: Place, folder: Path, crosvm_at: At) -> None:
    done = crosvm_at(place, "run", f"{folder}/hello.elf")
    assert done.returncode == VmExit.ERROR, done.stderr
    lines = [line for line in done.stderr.splitlines() if " WARN " not in line]
    assert len(lines) == 1, done.stderr
    assert re.search(place.refusal, lines[0])


def test_more_guest_memory_than_addresses_is_refused(folder: Path, crosvm_at: At) -> None:
    done = crosvm_at(Place("", limited(**{"as": 160 << 20})), "run", f"{folder}/hello.elf")
    assert done.returncode == VmExit.ERROR
    assert "map 256 MiB of guest memory: Cannot allocate memory (" in done.stderr


@pytest.mark.parametrize(
    "words",
    [
        pytest.param(["-s", "vm.sock"], id="socket"),
        pytest.param(["--vsock", "cid=3,socket=v"], id="vsock"),
        pytest.param(["--block", "disk.img"], id="block"),
        pytest.param(["--cgroup", "group"], id="cgroup"),
        pytest.param(["--serial", "type=file,path=log"], id="serial"),
        pytest.param(["--seccomp-policy-dir", "policies"], id="policies"),
    ],
)
def test_relative_path_in_a_directory_that_was_removed_is_refused(
    tmp_path: Path, folder: Path, words: list[str]
) -> None:
    gone = tmp_path / "gone"
    gone.mkdir()
    command = [sys.executable, "-m", "crosvm_py", "run", *words, f"{folder}/hello.elf"]
    done = subprocess.run(
        ["sh", "-c", f'cd {gone} && rmdir {gone} && exec "$@"', "sh", *command],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=PATIENCE_SECONDS,
        check=False,
    )
    assert done.returncode == VmExit.ERROR, done.stderr
    assert "internal error" not in done.stderr


def test_names_of_any_bytes_are_no_error_of_ours(tmp_path: Path, folder: Path) -> None:
    disk = os.fsencode(tmp_path) + b"/\xff.img"
    with open(disk, "wb") as file:
        file.truncate(4096)
    run: list[bytes | str] = [sys.executable, "-m", "crosvm_py", "run", "--name", b"\xff\xfe"]
    paths: list[bytes | str] = [b"-s", disk + b".s", b"--vsock", b"cid=3,socket=" + disk + b".v"]
    done = subprocess.run(
        [*run, *paths, b"--block", b"path=" + disk, f"{folder}/hello.elf"],
        cwd=ROOT,
        capture_output=True,
        timeout=PATIENCE_SECONDS,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    for words in ([b"--net", b"tap-name=\xff"], [b"--block", b"id=\xff,path=" + disk]):
        refused = subprocess.run(
            [*run, *words, f"{folder}/hello.elf"],
            cwd=ROOT,
            capture_output=True,
            timeout=PATIENCE_SECONDS,
            check=False,
        )
        assert refused.returncode == VmExit.ERROR, refused.stderr
