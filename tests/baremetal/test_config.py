# SPDX-License-Identifier: BSD-3-Clause
"""``crosvm run --config`` with a bare-metal guest: started directly, and by a pool."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from crosvm_py.exit_status import VmExit
from tests.baremetal.pool import RunningPool
from tests.baremetal.vmm import crosvm, eventually
from tests.guests.baremetal.build import build_guest

pytestmark = [pytest.mark.kvm, pytest.mark.slow]

SECTOR_BYTES = 512


@pytest.fixture
def file(tmp_path: Path) -> Path:
    disk = tmp_path / "disk.img"
    disk.write_bytes(bytes(range(4)) * (2 * SECTOR_BYTES))
    path = tmp_path / "vm.json"
    config = {
        "payload": {"kernel": str(build_guest("pci_block", tmp_path))},
        "memory": {"size": 16 << 20},
        "disks": [{"path": str(disk), "readonly": True}],
        "serial": {"mode": "Tty"},
        "console": {"mode": "Off"},
    }
    path.write_text(json.dumps(config))
    return path


def run(*words: str | Path) -> list[str]:
    done = crosvm("--extended-status", "run", *words)
    assert done.returncode == VmExit.RESET, done.stderr
    return done.stdout.replace("\r", "").splitlines()


def test_guest_of_a_file_reads_its_disk(file: Path) -> None:
    capacity, first, *_, last = run("--config", file, "-c", "2")
    assert capacity == "capacity 00000008"
    assert "data 0001020300010203" in first
    assert last == "pci_block: interrupts 3"


def test_monitor_of_a_pool_reads_the_file_of_its_client(file: Path, tmp_path: Path) -> None:
    with RunningPool(tmp_path / "pool.sock", 1) as pool:
        assert eventually(lambda: len(pool.waiting()) == 1)
        lines = run("--pool", pool.path, "--config", file)
    assert lines[-1] == "pci_block: interrupts 3"


def with_nodes(file: Path, host_node: int) -> None:
    config = json.loads(file.read_text())
    config["memory"] = {
        "size": 0,
        "zones": [
            {"id": "a", "size": 12 << 20, "host_numa_node": host_node},
            {"id": "b", "size": 4 << 20},
        ],
    }
    config["numa"] = [{"guest_numa_id": 0}, {"guest_numa_id": 1, "memory_zones": ["b"]}]
    file.write_text(json.dumps(config))


@pytest.mark.skipif(not Path("/proc/self/numa_maps").exists(), reason="the kernel has no NUMA")
def test_guest_with_nodes_runs_directly_and_by_a_pool(file: Path, tmp_path: Path) -> None:
    with_nodes(file, 0)
    assert run("--config", file)[-1] == "pci_block: interrupts 3"
    with RunningPool(tmp_path / "pool.sock", 1) as pool:
        assert eventually(lambda: len(pool.waiting()) == 1)
        assert run("--pool", pool.path, "--config", file)[-1] == "pci_block: interrupts 3"


def test_zone_in_a_node_that_the_host_lacks_ends_the_start(file: Path) -> None:
    with_nodes(file, 900)
    done = crosvm("run", "--config", file)
    assert done.returncode == 1
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("crosvm: ")]
    assert line.startswith("crosvm: take memory from NUMA node 900 of the host")


def test_file_that_cannot_run_ends_before_there_is_a_vm(file: Path) -> None:
    file.write_text('{"payload":{"kernel":"/k"},"memory":{"size":1e9}}')
    done = crosvm("run", "--config", file)
    assert done.returncode == 1
    assert done.stderr.endswith(
        f"--config {file}: memory.size: 1000000000.0 is not a whole number in 0..{(1 << 64) - 1}\n"
    )
