# SPDX-License-Identifier: BSD-3-Clause
"""The Python client drives a real program with a bare-metal guest."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from crosvm_py.client.connection import ApiError, ConnectionFailedError
from crosvm_py.client.vm import VM
from crosvm_py.vm_config.devices import BalloonConfig, ConsoleConfig, DiskConfig
from crosvm_py.vm_config.machine import MemoryConfig, PayloadConfig
from crosvm_py.vm_config.schema import VmConfig
from tests.guests.baremetal.build import build_guest

pytestmark = pytest.mark.slow

PROGRAM = (sys.executable, "-m", "crosvm_py", "ch")


@pytest.mark.kvm
def test_vm_is_launched_driven_and_ended(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.write_bytes(bytes(1 << 20))
    config = VmConfig(
        payload=PayloadConfig(kernel=str(build_guest("echo", tmp_path))),
        memory=MemoryConfig(size=16 << 20),
        console=ConsoleConfig(mode="Off"),
        disks=(DiskConfig(path=str(disk), id="data", image_type="Raw"),),
        balloon=BalloonConfig(size=0),
    )
    with VM.launch(config, program=PROGRAM) as vm:
        events = vm.events()
        assert [next(events).event for _ in range(3)] == ["starting", "booting", "booted"]
        assert vm.ping().version == "51.1.0"
        assert vm.info().state == "Running"
        vm.pause()
        with pytest.raises(ApiError, match="Paused") as refused:
            vm.pause()
        assert refused.value.status == 500
        assert vm.info().state == "Paused"
        vm.resume()
        vm.resize_disk("data", 2 << 20)
        assert disk.stat().st_size == 2 << 20
        vm.resize(balloon=4 << 20)
        assert vm.info().memory_actual_size == 16 << 20  # the guest has no driver
        assert vm.counters().keys() == {"data", "__rng", "__balloon"}
        vm.power_button()
        vm.nmi()  # for which this guest has no handler: a triple fault
        assert [next(events).event for _ in range(8)] == [
            *("pausing", "paused", "resuming", "resumed", "resizing", "resized"),
            *("rebooting", "rebooted"),
        ]
        vm.delete()
        assert [next(events).event for _ in range(2)] == ["shutdown", "deleted"]
        with pytest.raises(ApiError, match="not created"):
            vm.info()
    assert not Path(vm.path).exists()


def test_program_that_cannot_start_is_named() -> None:
    with pytest.raises(ConnectionFailedError, match="ended with"):
        VM.launch(program=(sys.executable, "-c", "raise SystemExit(3)"))
