# SPDX-License-Identifier: BSD-3-Clause
"""Reboots of cloud-hypervisor: by the guest and by clients, in the same process."""

from __future__ import annotations

import os
import signal
from typing import TYPE_CHECKING, Any, cast

import pytest

from tests.baremetal.test_cloud_hypervisor import Program, config, program
from tests.baremetal.vmm import PATIENCE_SECONDS, eventually
from tests.guests.baremetal.build import build_guest

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = [pytest.mark.kvm, pytest.mark.slow]

BOOTED = b" end\n"


@pytest.fixture(scope="module")
def reboots(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_guest("reboots", tmp_path_factory.mktemp("ch-reboot"))


def boots(ch: Program, count: int) -> None:
    """Wait until the guest has booted once more."""
    while ch.output.count(BOOTED) < count:
        text, ch.output = ch.output, b""
        ch.wait_for(b"\n")
        ch.output = text + ch.output


def start(ch: Program, kernel: Path) -> None:
    assert ch.put("vm.create", config(kernel)) == 204
    assert ch.put("vm.boot") == 204
    boots(ch, 1)


def test_guest_and_clients_reboot_in_the_same_process(tmp_path: Path, reboots: Path) -> None:
    with program(tmp_path) as ch:
        assert ch.put("vm.reboot") == 404
        start(ch, reboots)
        ch.type(b"9")
        boots(ch, 2)
        assert ch.put("vm.reboot") == 204
        boots(ch, 3)
        assert ch.put("vm.pause") == 204
        assert ch.put("vm.reboot") == 204
        boots(ch, 4)
        assert ch.state() == "Running"
        ch.type(b"t")
        boots(ch, 5)
        assert len({line for line in ch.output.split(b"\n") if line.startswith(b"state")}) == 1
        assert ch.put("vmm.shutdown") == 200
        assert ch.process.wait(PATIENCE_SECONDS) == 0
        again = [("vm", "rebooting"), ("vm", "rebooted")]
        assert [event for event in ch.events() if event[1].startswith("reboot")] == [
            ("vm", "rebooting"),
            *again * 4,
        ]


def test_disk_that_was_plugged_in_is_there_after_a_reboot(tmp_path: Path, reboots: Path) -> None:
    disk = tmp_path / "disk"
    disk.write_bytes(bytes(1 << 20))
    with program(tmp_path) as ch:
        start(ch, reboots)
        added = ch.call("PUT", "vm.add-disk", {"path": str(disk), "readonly": True})
        assert added.status == 200
        before = ch.call("GET", "vm.info").json()
        assert ch.put("vm.reboot") == 204
        assert ch.call("GET", "vm.info").json() == before
        assert ch.put("vm.remove-device", {"id": "_disk1"}) in (204, 404)


def test_guest_that_resets_for_ever_is_told_of_at_a_bounded_rate(tmp_path: Path) -> None:
    with program(tmp_path) as ch:
        assert ch.put("vm.create", config(build_guest("hello", tmp_path))) == 204
        assert ch.put("vm.boot") == 204
        count = 0
        while count < 300:
            ch.output = b""
            ch.wait_for(b"\n")
            count += ch.output.count(b"hello")
        assert ch.put("vm.pause") == 204
        assert ch.state() == "Paused"
        assert ch.put("vm.delete") == 204
        told = [event for event in ch.events() if event[1].startswith("reboot")]
        assert 0 < len(told) < count


def test_vm_that_was_shut_down_boots_again(tmp_path: Path, reboots: Path) -> None:
    with program(tmp_path) as ch:
        start(ch, reboots)
        held = len(os.listdir(f"/proc/{ch.process.pid}/fd"))
        for count in (2, 3):
            if count == 3:
                assert ch.put("vm.pause") == 204
            assert ch.put("vm.shutdown") == 204
            assert ch.state() == "Created"
            for name, status in (("vm.shutdown", 500), ("vm.pause", 500), ("vm.reboot", 404)):
                assert ch.put(name) == status
            assert ch.call("GET", "vm.counters").status == 500
            assert ch.put("vm.boot") == 204
            boots(ch, count)
            assert ch.put("vm.boot") == 500
            assert ch.state() == "Running"
        assert len(os.listdir(f"/proc/{ch.process.pid}/fd")) == held
        assert len({line for line in ch.output.split(b"\n") if line.startswith(b"state")}) == 1
        assert ch.put("vm.shutdown") == 204
        assert ch.put("vm.delete") == 204
        assert ch.call("GET", "vm.info").status == 404
        assert ch.put("vmm.shutdown") == 200
        assert ch.process.wait(PATIENCE_SECONDS) == 0
        booted = [("vm", "booting"), ("vm", "booted")]
        others = ("pausing", "paused", "rebooting")
        assert [event for event in ch.events() if event[1] not in others] == [
            *(("vmm", "starting"), *booted, ("vm", "shutdown"), *booted, ("vm", "shutdown")),
            *(*booted, ("vm", "shutdown"), ("vm", "deleted"), ("vmm", "shutdown")),
        ]


def test_vm_that_was_shut_down_boots_with_no_other_configuration(
    tmp_path: Path, reboots: Path
) -> None:
    with program(tmp_path) as ch:
        start(ch, reboots)
        assert ch.put("vm.shutdown") == 204
        assert ch.put("vm.add-disk", {"path": "/dev/null"}) == 204
        refused = ch.call("PUT", "vm.boot")
        assert refused.status == 500
        assert b"disks: changed since vm.shutdown" in refused.body
        assert ch.put("vm.remove-device", {"id": "_disk0"}) == 204
        assert ch.put("vm.boot") == 204
        boots(ch, 2)
        assert ch.put("vm.shutdown") == 204
        assert ch.put("vmm.shutdown") == 200
        assert ch.process.wait(PATIENCE_SECONDS) == 0


def test_vm_that_was_shut_down_boots_with_the_sizes_of_a_resize(tmp_path: Path) -> None:
    sizes: dict[str, object] = {
        "cpus": {"boot_vcpus": 1, "max_vcpus": 3},
        "memory": {"size": 16 << 20, "hotplug_size": 384 << 20},
        "balloon": {"size": 0},
    }
    with program(tmp_path) as ch:
        guest = build_guest("cpu_hotplug", tmp_path)
        assert ch.put("vm.create", config(guest) | sizes) == 204
        assert ch.put("vm.boot") == 204
        ch.wait_for(b"cpus\n")

        def boot_again(*, cpus: int, memory_mib: int, balloon_mib: int) -> None:
            """Boot and shut down again, and look at what the guest has."""
            ch.output = b""
            assert ch.put("vm.boot") == 204
            ch.wait_for(b"cpus\n")
            threads = {f"{'vcpu' if cpu < cpus else 'spare'}{cpu}" for cpu in range(3)}
            assert eventually(lambda: threads <= set(ch.threads()))
            ch.type(b"s")
            ch.wait_for(b"scanned")
            assert b"1" * cpus + b"0" * (4 - cpus) + b" scanned" in ch.output
            found = cast("dict[str, Any]", ch.call("GET", "vm.info").json())
            assert found["memory_actual_size"] == memory_mib << 20  # it drives no balloon
            assert found["config"]["balloon"]["size"] == balloon_mib << 20
            assert ch.put("vm.shutdown") == 204

        assert ch.put("vm.resize", {"desired_vcpus": 2, "desired_ram": 144 << 20}) == 204
        assert ch.put("vm.shutdown") == 204
        boot_again(cpus=2, memory_mib=144, balloon_mib=0)
        more = {"desired_vcpus": 3, "desired_ram": 400 << 20, "desired_balloon": 8 << 20}
        assert ch.put("vm.resize", more) == 204
        assert ch.put("vm.resize", {"desired_ram": 1 << 40}) == 500
        boot_again(cpus=3, memory_mib=400, balloon_mib=8)
        for cpus in (2, 1):
            less = {"desired_vcpus": cpus, "desired_ram": 144 << 20, "desired_balloon": 0}
            assert ch.put("vm.resize", less) == 204
        boot_again(cpus=1, memory_mib=144, balloon_mib=0)
        assert ch.put("vmm.shutdown") == 200
        assert ch.process.wait(PATIENCE_SECONDS) == 0


def test_guest_that_powered_off_boots_again(tmp_path: Path, reboots: Path) -> None:
    with program(tmp_path, "--no-shutdown") as ch:
        start(ch, reboots)
        ch.type(b"p")
        assert eventually(lambda: ch.state() == "Created")
        assert ch.events()[-1] == ("vm", "shutdown")
        assert ch.put("vm.boot") == 204
        boots(ch, 2)
        ch.process.send_signal(signal.SIGTERM)
        assert ch.process.wait(PATIENCE_SECONDS) == 0
