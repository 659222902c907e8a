# SPDX-License-Identifier: BSD-3-Clause
"""What the vmm and the warden give up, seen from inside; their filters are not loaded here."""

from __future__ import annotations

import os
import resource
import socket
import subprocess
import sys
from typing import TYPE_CHECKING, Final

import pytest

from jail import namespaces, plan
from jail.plan import VMM_OPEN_FILES, confine_vmm, confine_warden, load_filter
from seccomp import Policy
from sys_util import landlock, linux
from sys_util.errors import HostError
from tests.support.processes import in_child

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

PR_GET_DUMPABLE: Final = 3
PR_GET_NO_NEW_PRIVS: Final = 39
LIMITS: Final = ("CORE", "DATA", "MEMLOCK", "MSGQUEUE", "NICE", "RTPRIO", "NOFILE", "FSIZE")

needs_landlock = pytest.mark.skipif(
    not landlock.abi_version(), reason="this kernel has no Landlock"
)


needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root has capabilities")


def limits() -> dict[str, tuple[int, int]]:
    return {name: resource.getrlimit(getattr(resource, f"RLIMIT_{name}")) for name in LIMITS}


def as_vmm(act: Callable[[], object], *removable_in: Path) -> str:
    def run() -> object:
        confine_vmm(cpus=2, removable_in=map(str, removable_in))
        return act()

    return in_child(run)


def as_warden(act: Callable[[], object]) -> str:
    def run() -> object:
        confine_warden()
        return act()

    return in_child(run)


def raise_limit() -> str:
    try:
        resource.setrlimit(resource.RLIMIT_CORE, (1, 1))
    except ValueError as error:
        return str(error)
    return "raised"


def test_vmm_is_bounded_and_writes_files_of_any_size() -> None:
    before = limits()

    def bounded() -> bool:
        now = limits()
        nothing = all(
            now[name] == (0, 0) for name in ("CORE", "MEMLOCK", "MSGQUEUE", "NICE", "RTPRIO")
        )
        files = now["NOFILE"] == (min(VMM_OPEN_FILES, before["NOFILE"][1]),) * 2
        return nothing and files and now["FSIZE"] == before["FSIZE"] and now["DATA"][1] < 1 << 30

    assert as_vmm(bounded) == "True"


# In an interpreter that has no more memory than a vmm: the bound counts what a process has already.
THREADS = """
import resource, sys, threading
sys.path[:] = {path!r}
from jail.plan import confine_vmm
resource.setrlimit(resource.RLIMIT_STACK, ({soft}, {hard}))
confine_vmm(cpus=3)
if {soft} != resource.RLIM_INFINITY:
    threading.stack_size({soft})
threads = [threading.Thread(target=int) for _ in range(3)]
for thread in threads:
    thread.start()
print(len(threads))
"""


@pytest.mark.parametrize("stack_bytes", [8 << 20, 1 << 30, resource.RLIM_INFINITY])
def test_vmm_has_room_for_its_threads_whatever_their_stacks(stack_bytes: int) -> None:
    hard = resource.getrlimit(resource.RLIMIT_STACK)[1]
    if hard != resource.RLIM_INFINITY:
        stack_bytes = min(stack_bytes, hard) if stack_bytes >= 0 else hard

    program = THREADS.format(path=sys.path, soft=stack_bytes, hard=hard)
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False, timeout=120
    )
    assert (done.stdout, done.stderr) == ("3\n", "")


def test_vmm_cannot_be_traced_and_gains_nothing() -> None:
    assert as_vmm(lambda: linux.prctl(PR_GET_DUMPABLE)) == "0"
    assert as_vmm(lambda: linux.prctl(PR_GET_NO_NEW_PRIVS)) == "1"


@pytest.mark.parametrize("confined", [as_vmm, as_warden])
def test_bounds_cannot_be_raised(confined: Callable[[Callable[[], object]], str]) -> None:
    assert confined(raise_limit) == "not allowed to raise maximum limit"
    assert confined(lambda: limits()["CORE"]) == "(0, 0)"


@needs_landlock
def test_vmm_has_no_files_but_can_remove_its_sockets(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(str(tmp_path / "socket"))
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "file").touch()
    (tmp_path / "beside").mkdir()
    (tmp_path / "beside" / "file").touch()
    assert as_vmm(lambda: os.open("/etc/passwd", os.O_RDONLY)) == "EACCES"
    assert as_vmm(lambda: os.unlink(tmp_path / "beside" / "file"), tmp_path / "other") == "EACCES"
    assert as_vmm(lambda: os.unlink(tmp_path / "socket"), tmp_path) == "None"


@needs_landlock
@pytest.mark.root
def test_warden_keeps_what_a_jail_is_made_with() -> None:
    assert as_warden(lambda: os.close(os.open("/etc/passwd", os.O_RDONLY))) == "None"

    def stays_dumpable() -> int:
        linux.prctl(linux.PR_SET_DUMPABLE, 1)  # a test before this one may have changed ids
        confine_warden()
        return linux.prctl(PR_GET_DUMPABLE)

    assert in_child(stays_dumpable) == "1"


@needs_root
@pytest.mark.parametrize("restricted", [False, True])
def test_warden_of_root_keeps_what_it_clones_and_maps_with(
    monkeypatch: pytest.MonkeyPatch, restricted: bool
) -> None:
    monkeypatch.setattr(plan, "restricts_user_namespaces", lambda: restricted)
    kept = {linux.CAP_DAC_OVERRIDE, linux.CAP_SETGID, linux.CAP_SETUID}
    kept |= {linux.CAP_SYS_ADMIN} if restricted else set()
    assert as_warden(lambda: sorted(linux.capabilities())) == str(sorted(kept))
    assert as_vmm(lambda: sorted(linux.capabilities())) == "[]"


@needs_root
@pytest.mark.parametrize("missing", [linux.CAP_SETPCAP, linux.CAP_SETGID, linux.CAP_SETUID])
def test_warden_of_root_with_less_keeps_no_more(missing: int) -> None:
    def confine() -> bool:
        held = linux.capabilities() - {missing}
        linux.set_capabilities(sum(1 << each for each in held))
        confine_warden()
        return linux.capabilities() <= held

    assert in_child(confine) == "True"


@pytest.mark.parametrize("content", ["0\n", "1\n", None])
def test_restriction_of_namespaces_is_read_from_the_host(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, content: str | None
) -> None:
    if content is not None:
        (tmp_path / "sysctl").write_text(content)
    monkeypatch.setattr(namespaces, "_RESTRICTIONS", ((str(tmp_path / "sysctl"), b"0"),))
    assert namespaces.restricts_user_namespaces() is (content == "0\n")


def test_filter_that_the_kernel_refuses_is_named() -> None:
    def load() -> str:
        confine_warden()
        try:
            load_filter(Policy("vcpu", "", b"not bpf!"))
        except HostError as error:
            return str(error)
        return "loaded"

    assert in_child(load) == "jail: load the seccomp filter vcpu"
