# SPDX-License-Identifier: BSD-3-Clause
"""Which resizes the warden allows a vmm that may have been taken over."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from crosvm_py.kinds.order import DeviceOrder, pack_spec
from crosvm_py.warden import protocol
from devices.virtio.console.device import ConsoleSpec, PortSpec
from tests.crosvm_py.device_rig import DeviceRig

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def disk(tmp_path: Path) -> Path:
    path = tmp_path / "disk.img"
    path.write_bytes(bytes(range(256)) * 32)
    return path


@pytest.mark.parametrize("size_bytes", [0, 1, 511, 513, 8191, (1 << 63) - 1])
def test_no_disk_gets_a_size_that_no_disk_has(
    disk: Path, size_bytes: int, capfd: pytest.CaptureFixture[str]
) -> None:
    before = disk.stat().st_size
    with DeviceRig(sandbox=False) as rig:
        device = rig.block(disk)
        rig.supervisor.seal()
        rig.warden.channel.send(protocol.Resize(device.device_id, size_bytes))
        assert "ended, and its devices with it" in rig.death()
    assert disk.stat().st_size == before
    assert f"{size_bytes} bytes are no size of a disk" in capfd.readouterr().err


def console_order(fd: int) -> DeviceOrder:
    """A console whose output goes to a file, and which may write as much as it likes."""
    spec = ConsoleSpec((PortSpec("log", False, "stream", "none"),))
    return DeviceOrder("console", "console", pack_spec(spec), (os.dup(fd),), 1 << 62)


@pytest.mark.parametrize("kind", ["read-only disk", "console", "nothing"])
def test_file_of_any_other_device_is_not_cut_off(
    kind: str, disk: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    before = disk.read_bytes()
    with DeviceRig(sandbox=False) as rig, disk.open("r+b") as output:
        device_id = 7
        if kind == "console":
            device_id = rig.start(console_order(output.fileno())).device_id
        if kind == "read-only disk":
            device_id = rig.block(disk, read_only=True).device_id
        rig.supervisor.seal()
        rig.warden.channel.send(protocol.Resize(device_id, 512))
        assert "ended, and its devices with it" in rig.death()
    assert disk.read_bytes() == before
    assert f"device {device_id} " in capfd.readouterr().err
