# SPDX-License-Identifier: BSD-3-Clause
"""Drivers that write to the configuration of real processes without a pause."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

import pytest

from crosvm_py.config import SerialSpec
from crosvm_py.console import virtio_console
from crosvm_py.console.serial_ports import open_serial_ports
from crosvm_py.kinds.console import open_console
from crosvm_py.kinds.order import DeviceOrder, pack_spec
from devices.virtio.balloon.device import BalloonSpec
from tests.crosvm_py.device_rig import PATIENCE_SECONDS, DeviceRig

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

ACTUAL = 4
EMERGENCY_WRITE = 8


@pytest.fixture
def rig() -> Iterator[DeviceRig]:
    with DeviceRig(sandbox=False) as rig:
        yield rig


def test_last_size_that_the_driver_wrote_is_the_balloons(rig: DeviceRig) -> None:
    device = rig.start(DeviceOrder("balloon", "balloon", pack_spec(BalloonSpec()), (), 0))
    for pages in range(500):
        with rig.lock:
            device.write_config(ACTUAL, pages.to_bytes(4, "little"))
            assert struct.unpack_from("<I", device.config, ACTUAL) == (pages,)
    rig.until(lambda: not device.is_writing())
    assert struct.unpack_from("<I", device.config, ACTUAL) == (499,)


def test_emergency_output_is_complete_when_the_vm_ends(
    rig: DeviceRig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(virtio_console, "DRAIN_SECONDS", PATIENCE_SECONDS)
    path = tmp_path / "console"
    spec = SerialSpec("file", "virtio-console", path=str(path), console=True)
    console = open_serial_ports([spec]).virtio
    assert console is not None
    device = rig.start(open_console(console))
    console.connect(device.command, device.is_writing)
    panic = "".join(f"[{line:4}] the guest's kernel has met its end\n" for line in range(50))
    for character in panic.encode():
        with rig.lock:
            device.write_config(EMERGENCY_WRITE, bytes((character, 0, 0, 0)))
    with rig.lock:
        device.reset()
    console.drain(rig.loop.run_once)
    assert path.read_text() == panic
    console.close()
