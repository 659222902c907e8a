# SPDX-License-Identifier: BSD-3-Clause
"""A guest that resets its machine for ever, while devices come, go, fail and are held still."""

from __future__ import annotations

import os
import signal
from contextlib import suppress
from typing import TYPE_CHECKING

import pytest

from crosvm_py.control.socket_client import ControlError, ask
from crosvm_py.exit_status import VmExit
from crosvm_py.kinds.order import pack_spec
from crosvm_py.requests.devices import DeviceList, ListDevices, RestartDevice
from crosvm_py.requests.life import Reboot, Resume, Suspend
from crosvm_py.requests.plug import Plug, Unplug
from devices.virtio.block.spec import BlockSpec
from sys_util.errors import VmmError
from tests.baremetal.vmm import Vmm, children, eventually, name_of
from tests.guests.baremetal.build import build_guest

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

pytestmark = [pytest.mark.kvm, pytest.mark.slow]

ROUNDS = 2
SERVED = b"pci_block: interrupts 3"


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "data.img"
    path.write_bytes(bytes(1 << 20))
    return path


@pytest.fixture
def control(tmp_path: Path) -> Path:
    return tmp_path / "vm.sock"


@pytest.fixture
def vmm(image: Path, control: Path, tmp_path: Path) -> Iterator[Vmm]:
    disk = ["--block", f"path={image},ro=true,lock=false", "--device-restart", "always"]
    words: list[str | Path] = ["-m", "16", "-c", "2", "--reboot", "-s", control, *disk]
    with Vmm([*words, build_guest("pci_block", tmp_path)]) as vmm:
        vmm.wait_for(SERVED)
        assert eventually(control.exists)
        yield vmm


def boots_again(vmm: Vmm) -> None:
    vmm.output = b""
    vmm.wait_for(SERVED)
    vmm.output = b""
    vmm.wait_for(SERVED)


def devices(control: Path) -> dict[str, int]:
    found = ask(str(control), ListDevices())
    assert isinstance(found, DeviceList)
    return {device.name: device.pid for device in found.devices}


def goes_on(socket: str) -> bool:
    """Resume the VM; return False if the control process is just being made again."""
    with suppress(VmmError):
        ask(socket, Resume())
        return True
    return False


def kill_below(vmm: Vmm, name: str) -> None:
    """Kill a process below the keeper."""
    for keeper in children(vmm.process.pid):
        if name_of(keeper) == "crosvm-keeper":
            for pid in children(keeper):
                with suppress(FileNotFoundError, ProcessLookupError):
                    if name_of(pid) == name:
                        os.kill(pid, signal.SIGKILL)


def test_guest_that_resets_for_ever_survives_all_that_can_happen_meanwhile(
    vmm: Vmm, control: Path, image: Path
) -> None:
    spec = pack_spec(BlockSpec("", lock=False, option="plug disk"))
    socket = str(control)

    def kill_device() -> None:
        os.kill(devices(control)["block:0"], signal.SIGKILL)

    actions: list[Callable[[], object]] = [
        kill_device,
        lambda: ask(socket, RestartDevice("block:0")),
        lambda: ask(socket, Plug("block", spec, os.fsencode(image), "extra")),
        lambda: kill_below(vmm, "crosvm-control"),
        lambda: ask(socket, Suspend()),
        lambda: ask(socket, Resume()),
        lambda: ask(socket, Unplug("extra")),
        lambda: ask(socket, Reboot()),
        lambda: kill_below(vmm, "crosvm-opener"),
    ]
    for _ in range(ROUNDS):
        for act in actions:
            # One may be refused, since the device is restarted just now, or its client be lost.
            with suppress(VmmError, ProcessLookupError):
                act()
        assert eventually(lambda: goes_on(socket))
        boots_again(vmm)
    assert eventually(lambda: set(devices(control)) <= {"block:0", "rng", "extra"})
    with suppress(ControlError):
        ask(socket, Unplug("extra"))
    assert eventually(lambda: set(devices(control)) == {"block:0", "rng"})
    boots_again(vmm)
    vmm.processes()
    vmm.signal(signal.SIGTERM)
    assert vmm.wait() == VmExit.STOPPED
    assert vmm.nothing_is_left()
    assert len(vmm.log().splitlines()) < 200
