# SPDX-License-Identifier: BSD-3-Clause
"""The reported reason for the end of a VM when there are several reasons."""

from __future__ import annotations

import os
import signal
from typing import TYPE_CHECKING

import pytest

from crosvm_py.control.socket_client import ask
from crosvm_py.exit_status import VmExit
from crosvm_py.requests.life import Suspend
from tests.baremetal.vmm import Vmm
from tests.guests.baremetal.build import build_guest

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = [pytest.mark.kvm, pytest.mark.slow]


def test_reset_after_a_panic_is_a_panic(tmp_path: Path) -> None:
    with Vmm(["-m", "16", build_guest("panic", tmp_path)]) as vmm:
        assert vmm.wait() == VmExit.GUEST_PANIC
        log = vmm.log()
    assert "the guest reports a panic" in log
    assert "the guest asked for a reset" in log


def test_only_the_first_reason_is_told(tmp_path: Path) -> None:
    """The guest resets, and then its devices end; only the reset is reported."""
    with Vmm(["-m", "16", build_guest("hello", tmp_path)]) as vmm:
        assert vmm.wait() == VmExit.RESET
        log = vmm.log()
    lines = [line for line in log.splitlines() if "INFO" in line or "ERROR" in line]
    assert len(lines) == 1
    assert lines[0].endswith("the guest asked for a reset")


@pytest.mark.parametrize("cpus", [2, 16])
def test_processors_that_never_started_do_not_keep_the_vm(tmp_path: Path, cpus: int) -> None:
    with Vmm(["-m", "16", "-c", str(cpus), build_guest("hello", tmp_path)]) as vmm:
        assert vmm.wait() == VmExit.RESET
        assert "does not stop" not in vmm.log()


def test_vm_without_devices_has_a_warden_without_children(tmp_path: Path) -> None:
    with Vmm(["-m", "16", "--no-rng", build_guest("echo", tmp_path)]) as vmm:
        vmm.wait_for(b"echo")
        assert vmm.processes().devices == {}
        vmm.type(b"q")
        assert vmm.wait() == VmExit.RESET


def test_device_that_dies_while_the_vm_is_suspended_ends_it(tmp_path: Path) -> None:
    control = tmp_path / "vm.sock"
    guest = build_guest("echo", tmp_path)
    with Vmm(["-m", "16", "--device-restart=never", "-s", control, guest]) as vmm:
        vmm.wait_for(b"echo")
        ask(str(control), Suspend())
        pid = vmm.processes().devices["rng"]
        os.kill(pid, signal.SIGKILL)
        assert vmm.wait() == VmExit.CRASH
        assert f"rng (pid {pid}): killed by SIGKILL" in vmm.log()
