# SPDX-License-Identifier: BSD-3-Clause
"""Guests that boot again in the same process: what they find, and that nothing is left or grows."""

from __future__ import annotations

import os
import re
import signal
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from crosvm_py.control.socket_client import ask
from crosvm_py.exit_status import VmExit
from crosvm_py.kinds.order import pack_spec
from crosvm_py.requests.devices import DeviceList, ListDevices
from crosvm_py.requests.life import Reboot, Resume, Suspend
from crosvm_py.requests.plug import Plug, Unplug
from crosvm_py.requests.protocol import Done
from crosvm_py.requests.vm import SUSPENDED, QueryVm, VmFacts
from devices.virtio.block.spec import BlockSpec
from tests.baremetal.vmm import Vmm, crosvm, eventually, has_ended
from tests.guests.baremetal.build import build_guest

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = [pytest.mark.kvm, pytest.mark.slow]

TIMES = 100
BOOTED = b" end\n"
SERVED = b"pci_block: interrupts 3"


@pytest.fixture(scope="module")
def guests(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("reboot")
    return {name: build_guest(name, folder) for name in ("reboots", "pci_block")}


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "data.img"
    path.write_bytes(bytes(1 << 20))
    return path


@pytest.fixture
def control(tmp_path: Path) -> Path:
    return tmp_path / "vm.sock"


@pytest.fixture
def vmm(guests: dict[str, Path], control: Path) -> Iterator[Vmm]:
    """A guest with two vCPUs and a control socket that waits for a key after its first boot."""
    words: list[str | Path] = ["-c", "2", "-m", "16", "--reboot", "-s", control]
    with Vmm([*words, guests["reboots"]]) as vmm:
        vmm.wait_for(BOOTED)
        assert eventually(control.exists)
        yield vmm


def boots(vmm: Vmm, count: int) -> None:
    """Wait until the guest has booted so often."""
    while vmm.output.count(BOOTED) < count:
        seen = len(vmm.output)
        text, vmm.output = vmm.output, b""
        vmm.wait_for(b"\n")
        vmm.output = text + vmm.output
        assert len(vmm.output) > seen


def states(vmm: Vmm) -> list[bytes]:
    return re.findall(rb"state .* end\n", vmm.output)


def descriptors(pids: list[int]) -> list[int]:
    return [len(os.listdir(f"/proc/{pid}/fd")) for pid in pids]


def private_kib(pid: int) -> int:
    """Return the memory of a process that is not the guest's, nor shared in another way."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("RssAnon"))


def devices(control: Path) -> dict[str, int]:
    found = ask(str(control), ListDevices())
    assert isinstance(found, DeviceList)
    return {device.name: device.slot for device in found.devices}


def test_every_way_to_reset_boots_the_guest_from_the_same_state(vmm: Vmm) -> None:
    before = vmm.processes()
    for count, key in enumerate(b"9ktk9t", 2):
        vmm.type(bytes((key,)))
        boots(vmm, count)
    assert len(states(vmm)) == 7
    assert len(set(states(vmm))) == 1
    assert b"memory=0000 scratch=00 apic=0ff" in vmm.output
    assert vmm.processes().devices == before.devices
    vmm.type(b"p")
    assert vmm.wait() == VmExit.STOPPED
    assert vmm.nothing_is_left()
    assert vmm.log().count("it boots again") == 6


def test_without_the_option_a_reset_ends_the_run(guests: dict[str, Path]) -> None:
    with Vmm(["-m", "16", guests["reboots"]]) as vmm:
        vmm.wait_for(BOOTED)
        vmm.type(b"9")
        assert vmm.wait() == VmExit.RESET


def test_100_reboots_leave_nothing_and_fill_no_log(guests: dict[str, Path], image: Path) -> None:
    words: list[str | Path] = ["-m", "16", "--reboot", "--block", f"path={image},ro=true"]
    with Vmm([*words, guests["pci_block"]]) as vmm:
        vmm.wait_for(SERVED)
        found = vmm.processes()
        pids = [found.vmm, found.warden, *found.devices.values()]
        vmm.output = b""
        vmm.wait_for(SERVED)
        held, used = descriptors(pids), [private_kib(pid) for pid in pids]
        boots_seen = 0
        while boots_seen < TIMES:
            vmm.output = vmm.output[-len(SERVED) :]
            vmm.wait_for(SERVED)
            boots_seen += vmm.output.count(SERVED)
            vmm.output = vmm.output.rpartition(SERVED)[2]
        assert vmm.processes().devices == found.devices
        assert all(now <= before + 1 for now, before in zip(descriptors(pids), held, strict=True))
        grown = [private_kib(pid) - before for pid, before in zip(pids, used, strict=True)]
        assert max(grown) < 1024
        vmm.signal(signal.SIGTERM)
        assert vmm.wait() == VmExit.STOPPED
        assert vmm.nothing_is_left()
        assert len(vmm.log().splitlines()) < TIMES // 2


def test_killed_device_is_replaced_and_the_guest_boots_on(
    guests: dict[str, Path], image: Path
) -> None:
    words: list[str | Path] = ["-m", "16", "--reboot", "--block", f"path={image},ro=true"]
    with Vmm([*words, guests["pci_block"]]) as vmm:
        for _ in range(4):
            vmm.output = b""
            vmm.wait_for(SERVED)
            victim = vmm.processes().devices["block:0"]
            pidfd = os.pidfd_open(victim)
            os.kill(victim, signal.SIGKILL)
            assert has_ended(pidfd)
            os.close(pidfd)
            vmm.output = b""
            vmm.wait_for(b"capacity")
        vmm.output = b""
        vmm.wait_for(SERVED)
        vmm.signal(signal.SIGTERM)
        assert vmm.wait() == VmExit.STOPPED


def test_client_reboots_the_guest(vmm: Vmm, control: Path) -> None:
    assert crosvm("reboot", control).returncode == 0
    boots(vmm, 2)
    assert isinstance(ask(str(control), Reboot()), Done)
    boots(vmm, 3)
    assert len(set(states(vmm))) == 1


def test_client_cannot_reboot_a_guest_that_boots_once(
    guests: dict[str, Path], control: Path
) -> None:
    with Vmm(["-m", "16", "-s", control, guests["reboots"]]) as vmm:
        vmm.wait_for(BOOTED)
        done = crosvm("reboot", control)
        assert done.returncode == 1
        assert "was not started with --reboot" in done.stderr


def test_reboot_of_a_suspended_vm_lets_it_go_on(vmm: Vmm, control: Path) -> None:
    ask(str(control), Suspend())
    ask(str(control), Reboot())
    boots(vmm, 2)
    facts = ask(str(control), QueryVm())
    assert isinstance(facts, VmFacts)
    assert facts.state != SUSPENDED


def test_reset_that_comes_with_a_suspension_is_done_when_the_vm_goes_on(
    vmm: Vmm, control: Path
) -> None:
    for count in range(2, 12):
        vmm.type(b"9")
        for request in (Suspend(), Resume()):
            ask(str(control), request)
        boots(vmm, count)


def test_disk_that_was_plugged_in_stays_at_its_slot(vmm: Vmm, control: Path, image: Path) -> None:
    spec = pack_spec(BlockSpec("", lock=False, option="plug disk"))
    for _ in range(2):
        ask(str(control), Plug("block", spec, os.fsencode(image)))
    before = devices(control)
    vmm.type(b"9")
    boots(vmm, 2)
    assert devices(control) == before
    ask(str(control), Unplug("block:0"))
    assert devices(control) == before  # this guest lets nothing go
    vmm.type(b"k")
    boots(vmm, 3)
    del before["block:0"]
    assert eventually(lambda: devices(control) == before)
    ask(str(control), Plug("block", spec, os.fsencode(image), "block:0"))
    assert "block:0" in devices(control)
