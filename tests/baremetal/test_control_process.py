# SPDX-License-Identifier: BSD-3-Clause
"""The control process beside a running guest: what it holds, and the VM without it."""

from __future__ import annotations

import os
import signal
import socket
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from crosvm_py.exit_status import VmExit
from tests.baremetal.vmm import Vmm, crosvm, eventually, name_of
from tests.guests.baremetal.build import build_guest

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = [pytest.mark.kvm, pytest.mark.slow]


@pytest.fixture(scope="module")
def echo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_guest("echo", tmp_path_factory.mktemp("control"))


@pytest.fixture
def vmm(echo: Path, tmp_path: Path) -> Iterator[Vmm]:
    with Vmm(["-m", "16", "-s", tmp_path / "sock", echo]) as vmm:
        vmm.wait_for(b"echo")
        assert crosvm("devices", tmp_path / "sock").returncode == 0  # it has started
        yield vmm


def descriptors(pid: int) -> set[str]:
    """Return what the descriptors of a process are."""
    names = {os.readlink(entry) for entry in Path(f"/proc/{pid}/fd").iterdir()}
    return {name.partition(":")[0] for name in names}


def assert_alive(vmm: Vmm, key: bytes) -> None:
    vmm.type(key)
    vmm.wait_for(b"<%02x>" % key[0])


def test_clients_meet_the_control_process_alone(vmm: Vmm, tmp_path: Path) -> None:
    keeper, control = vmm.processes().control
    assert [name_of(keeper), name_of(control)] == ["crosvm-keeper", "crosvm-control"]
    assert not any("kvm" in name or "crosvm_guest" in name for name in descriptors(control))
    assert "memory:crosvm_guest" not in Path(f"/proc/{control}/maps").read_text()
    status = Path(f"/proc/{control}/status").read_text()
    assert "Seccomp:\t2" in status
    assert "CapEff:\t0000000000000000" in status
    assert "NoNewPrivs:\t1" in status
    assert crosvm("stop", tmp_path / "sock").returncode == 0
    assert vmm.wait() == VmExit.STOPPED
    assert vmm.nothing_is_left()
    assert "control process" not in vmm.log()


def test_killed_control_process_is_named_and_made_again(vmm: Vmm, tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as client:
        client.connect(str(tmp_path / "sock"))
        _, control = vmm.processes().control
        os.kill(control, signal.SIGKILL)
        assert crosvm("devices", tmp_path / "sock").returncode == 0
    assert_alive(vmm, b"a")
    assert control not in vmm.processes().control
    vmm.signal(signal.SIGTERM)
    assert vmm.wait() == VmExit.STOPPED
    assert vmm.nothing_is_left()
    assert "control process: killed by signal 9" in vmm.log()


def test_vm_without_its_keeper_runs_on(vmm: Vmm) -> None:
    keeper, control = vmm.processes().control
    os.kill(keeper, signal.SIGKILL)
    assert eventually(lambda: not Path(f"/proc/{control}").exists())
    assert_alive(vmm, b"a")
    vmm.signal(signal.SIGTERM)
    assert vmm.wait() == VmExit.STOPPED
    assert vmm.nothing_is_left()
    assert "no control process can be started again" in vmm.log()


def test_stopped_control_process_does_not_keep_the_vm_from_ending(vmm: Vmm) -> None:
    for pid in vmm.processes().control:
        os.kill(pid, signal.SIGSTOP)
    assert_alive(vmm, b"a")
    vmm.signal(signal.SIGTERM)
    assert vmm.wait() == VmExit.STOPPED
    assert vmm.nothing_is_left()
