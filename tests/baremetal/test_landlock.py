# SPDX-License-Identifier: BSD-3-Clause
"""``--landlock``: what clients of a running VM may have opened, and what not."""

from __future__ import annotations

import os
import signal
from typing import TYPE_CHECKING

import pytest

from crosvm_py.exit_status import VmExit
from sys_util import landlock
from tests.baremetal.test_cloud_hypervisor import program
from tests.baremetal.vmm import Vmm, crosvm, eventually
from tests.guests.baremetal.build import build_guest

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = [
    pytest.mark.kvm,
    pytest.mark.slow,
    pytest.mark.skipif(not landlock.abi_version(), reason="no Landlock"),
]
REFUSED = "Permission denied (no --landlock-rules lets it be opened)"


@pytest.fixture
def images(tmp_path: Path) -> Path:
    for name in ("inside", "outside"):
        (tmp_path / name).mkdir()
        for image in "abc":
            (tmp_path / name / image).write_bytes(bytes(4096))
    return tmp_path


def test_run_lets_clients_have_opened_what_the_rules_name(images: Path) -> None:
    control = images / "sock"
    rule = f"{images / 'inside'},access=rw"
    words = ["-m", "16", "-s", str(control), "--landlock", "--landlock-rules", rule]
    with Vmm([*words, build_guest("echo", images)]) as vmm:
        vmm.wait_for(b"echo")
        assert crosvm("plug", f"disk={images / 'inside' / 'a'}", control).returncode == 0
        assert REFUSED in crosvm("plug", f"disk={images / 'outside' / 'a'}", control).stderr
        before = vmm.processes().control
        os.kill(before[1], signal.SIGKILL)
        assert eventually(lambda: vmm.processes().control[1:] not in ([], before[1:]))
        assert REFUSED in crosvm("plug", f"disk={images / 'outside' / 'a'}", control).stderr
        assert crosvm("plug", f"disk={images / 'inside' / 'b'}", control).returncode == 0


def test_cloud_hypervisor_keeps_to_the_rules_of_its_command_line(images: Path) -> None:
    kernel = build_guest("echo", images)
    rules = ("--landlock", "--landlock-rules", f"path={images / 'inside'},access=rw")
    words = ("--kernel", str(kernel), "--memory", "size=16M", *rules)
    with program(images, *words) as ch:
        assert eventually(lambda: ch.state() == "Running")
        assert ch.put("vm.add-disk", {"path": str(images / "inside" / "a")}) == 200
        answer = ch.call("PUT", "vm.add-disk", {"path": str(images / "outside" / "a")})
        assert (answer.status, REFUSED in str(answer.json())) == (500, True)


def test_rule_that_names_nothing_is_an_error(images: Path) -> None:
    rule = f"{images / 'no'},access=rw"
    kernel = build_guest("echo", images)
    done = crosvm("run", "-s", images / "s", "--landlock", "--landlock-rules", rule, kernel)
    assert done.returncode == VmExit.ERROR
    assert f"open --landlock-rules {images / 'no'}: No such file or directory" in done.stderr


def test_rules_without_landlock_are_an_error(images: Path) -> None:
    done = crosvm("run", "--landlock-rules", f"{images}", images / "kernel")
    assert done.returncode == VmExit.USAGE
    assert "--landlock-rules: needs --landlock" in done.stderr
