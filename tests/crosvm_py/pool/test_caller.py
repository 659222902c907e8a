# SPDX-License-Identifier: BSD-3-Clause
"""What a monitor asks of the process that started its run, and whose job it is."""

from __future__ import annotations

import os
import pty
import re
import subprocess
import sys
from typing import TYPE_CHECKING, Final

import pytest

from crosvm_py.console.job import CallersJob
from crosvm_py.pool import cgroup
from crosvm_py.pool.caller import DeclinedError, check_same, own_status, take_over
from crosvm_py.pool.descriptors import install

if TYPE_CHECKING:
    from collections.abc import Iterator

NOBODYS_PID: Final = 0


@pytest.fixture
def caller() -> Iterator[int]:
    process = subprocess.Popen(["cat"], stdin=subprocess.PIPE)
    with process:
        yield process.pid


def test_child_of_ours_is_the_same(caller: int) -> None:
    check_same(caller, own_status())


@pytest.mark.parametrize("name", ["CapEff", "Uid", "Seccomp", "NoNewPrivs"])
def test_other_rights_are_declined(caller: int, name: str) -> None:
    with pytest.raises(DeclinedError, match=f"another {name}"):
        check_same(caller, {**own_status(), name: "other"})


def test_caller_that_has_gone_is_an_error() -> None:
    with pytest.raises(OSError, match=re.escape("[Errno 2]")):
        check_same(NOBODYS_PID, own_status())


def test_group_of_a_version_1_hierarchy_is_declined(monkeypatch: pytest.MonkeyPatch) -> None:
    groups = {"self": {"0::/", "3:memory:/"}, 1: {"0::/", "3:memory:/other"}}
    monkeypatch.setattr(cgroup, "_groups", groups.__getitem__)
    with pytest.raises(ValueError, match="cgroup v1: 3:memory:/other"):
        cgroup.join_cgroup(1)


def test_what_the_kernel_refuses_is_declined(caller: int, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_pid: int) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr("crosvm_py.pool.caller.join_cgroup", refuse)
    with pytest.raises(DeclinedError, match="control group of its caller: Operation not permitted"):
        take_over(caller, ())


@pytest.mark.parametrize(
    ("numbers", "received"),
    [pytest.param([5, 5], [0, 1], id="twice"), pytest.param([5], [], id="missing")],
)
def test_descriptors_that_make_no_sense_are_declined(
    numbers: list[int], received: list[int]
) -> None:
    with pytest.raises(DeclinedError, match="other descriptors than"):
        install(numbers, received, ())


SCRIPT: Final = """
import os, sys
from crosvm_py.pool.descriptors import install
a, b = os.pipe(), os.pipe()
os.write(a[1], b"a"), os.write(b[1], b"b")
numbers, received = [b[0], a[0], 30], [a[0], b[0], 1]  # each has the number of the other
moved = install(numbers, received, [a[1], b[1]])
assert os.read(b[0], 9) == b"a" and os.read(a[0], 9) == b"b"
assert os.write(moved[a[1]], b"!") and os.read(b[0], 9) == b"!"
os.write(30, b" ".join(os.fsencode(fd) for fd in sorted(os.listdir("/proc/self/fd"))))
"""


def test_descriptors_change_places_and_others_are_closed() -> None:
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, check=True)
    assert len(done.stdout.split()) == 3 + 2 + 1  # the client's, our own, the directory


JOBS: Final = """
import os, subprocess
from crosvm_py.console.job import CallersJob
other = subprocess.Popen(["cat"], stdin=subprocess.PIPE, process_group=0)
print(*(CallersJob.of(pid).in_foreground(0) for pid in (os.getpid(), other.pid)))
"""


def test_job_of_another_process_is_in_the_foreground_or_not() -> None:
    controller, terminal = pty.openpty()
    try:
        command = ["setsid", "--ctty", "--wait", sys.executable, "-c", JOBS]
        done = subprocess.run(command, stdin=terminal, capture_output=True, check=True)
        assert done.stdout.split() == [b"True", b"False"]
        job = CallersJob.of(os.getpid())
        assert job.in_foreground(terminal)  # it is not the terminal of our session
        os.close(job.fd)
    finally:
        os.close(controller)
        os.close(terminal)
