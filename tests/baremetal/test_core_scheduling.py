# SPDX-License-Identifier: BSD-3-Clause
"""Core scheduling in a run: where the kernel has none, a filter answers in its place."""

from __future__ import annotations

import errno
import struct
from typing import TYPE_CHECKING, Final

import pytest

from crosvm_py.exit_status import VmExit
from seccomp import syscall_number
from seccomp.actions import SECCOMP_RET_ALLOW, SECCOMP_RET_ERRNO
from sys_util import linux
from tests.baremetal.vmm import Vmm
from tests.guests.baremetal.build import build_guest

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

pytestmark = [pytest.mark.kvm, pytest.mark.slow]

LOAD: Final = 0x20  # BPF_LD | BPF_W | BPF_ABS
JUMP_EQUAL: Final = 0x15
RETURN: Final = 0x06
NR, ARG0, ARG1 = 0, 16, 24  # offsets in struct seccomp_data
PR_SCHED_CORE: Final = 62
PR_SCHED_CORE_GET: Final = 0


def kernel_that_answers(get: int, create: int) -> Callable[[], None]:
    """Return what makes prctl(2) answer with these numbers, 0 for success."""
    lines = (
        (LOAD, 0, 0, NR),
        (JUMP_EQUAL, 0, 5, syscall_number("prctl")),
        (LOAD, 0, 0, ARG0),
        (JUMP_EQUAL, 0, 3, PR_SCHED_CORE),
        (LOAD, 0, 0, ARG1),
        (JUMP_EQUAL, 2, 0, PR_SCHED_CORE_GET),
        (RETURN, 0, 0, SECCOMP_RET_ERRNO | create),
        (RETURN, 0, 0, SECCOMP_RET_ALLOW),
        (RETURN, 0, 0, SECCOMP_RET_ERRNO | get),
    )
    program = b"".join(struct.pack("=HBBI", *line) for line in lines)

    def load() -> None:
        linux.prctl(linux.PR_SET_NO_NEW_PRIVS, 1)
        linux.load_seccomp_filter(program)

    return load


def end_of_run(folder: Path, words: list[str], kernel: Callable[[], None]) -> tuple[int, str]:
    with Vmm([*words, "-m", "16", "-c", "2", build_guest("hello", folder)], before=kernel) as vmm:
        return vmm.wait(), vmm.log()


@pytest.mark.parametrize(
    "words",
    [[], ["--core-scheduling=true"], ["--per-vm-core-scheduling"], ["--disable-sandbox"]],
    ids=["default", "true", "per-vm", "unconfined"],
)
def test_guest_runs_on_cores_of_its_own(tmp_path: Path, words: list[str]) -> None:
    status, log = end_of_run(tmp_path, words, kernel_that_answers(0, 0))
    assert (status, "ERROR" in log) == (VmExit.RESET, False), log


@pytest.mark.parametrize(
    "words", [[], ["--per-vm-core-scheduling"], ["--disable-sandbox"]], ids=["all", "vm", "open"]
)
def test_no_guest_runs_where_a_core_was_refused(tmp_path: Path, words: list[str]) -> None:
    status, log = end_of_run(tmp_path, words, kernel_that_answers(0, errno.ENOMEM))
    assert status == VmExit.ERROR
    assert "take a core for vCPUs (or try --core-scheduling=false): Cannot allocate memory" in log


def test_core_is_not_asked_for_where_it_is_not_wanted(tmp_path: Path) -> None:
    kernel = kernel_that_answers(0, errno.ENOMEM)
    assert end_of_run(tmp_path, ["--core-scheduling=false"], kernel)[0] == VmExit.RESET
