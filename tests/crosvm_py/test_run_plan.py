# SPDX-License-Identifier: BSD-3-Clause
"""The plan of a run: its content, its side effects, and that its names do not change."""

from __future__ import annotations

import json
import os
import signal
from typing import TYPE_CHECKING

import pytest

from crosvm_py.cli.commands.run_plan_text import as_text
from crosvm_py.end_signals import END_SIGNALS
from crosvm_py.kinds import cgroup
from crosvm_py.machine.x86_64.arch import X86
from crosvm_py.run_plan import RunPlan, as_fields, plan_run
from devices.virtio.block.spec import BlockSpec
from disk.image import open_image
from jail.cgroup import VmCgroup, memory_limit
from jail.cgroup_site import CgroupSite
from seccomp.loader import count, load_policy
from sys_util.errors import ConfigError
from tests.kernel_loader.images import ENTRY, Elf
from tests.support.command_line import config_of

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = [pytest.mark.kvm, pytest.mark.usefixtures("lines")]

TOP = {
    *("version", "kernel", "initrd", "vcpus", "memory", "serial", "devices", "policies"),
    *("sandbox", "cgroup", "sockets", "device_restart", "device_timeout"),
}
DEVICE = {
    *("slot", "name", "kind", "source", "policy", "queues", "rate_limits"),
    *("memory_limit_bytes", "processes_limit", "descriptors", "jail"),
}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "vmlinux").write_bytes(Elf().build())
    (tmp_path / "initrd").write_bytes(bytes(5120))
    (tmp_path / "disk").write_bytes(bytes(512 * 16))
    return tmp_path


def plan(*words: str) -> RunPlan:
    return plan_run(config_of("--serial", "sink,console", "--cgroup", "none", *words, "vmlinux"))


def fields(value: object) -> dict[str, object]:
    found = as_fields(value)
    assert isinstance(found, dict)
    return found


@pytest.mark.usefixtures("folder")
def test_names_of_the_plan_are_those_that_are_documented() -> None:
    made = plan("-i", "initrd", "-r", "disk", "-s", "vm.sock")
    found = fields(made)
    assert json.loads(json.dumps(found)) == found
    assert found.keys() == TOP
    assert fields(made.kernel).keys() == {
        *("path", "format", "protocol", "entry", "parameters", "segments")
    }
    assert fields(made.initrd).keys() == {"path", "gpa", "size_bytes"}
    assert fields(made.memory).keys() == {"size_bytes", "map"}
    assert fields(made.serial[0]).keys() == {
        *("place", "type", "path", "input", "console", "earlycon", "stdin", "name")
    }
    assert fields(made.devices[0]).keys() == DEVICE
    assert fields(made.policies[0]).keys() == {"name", "path", "allows", "used_by"}
    assert fields(made.sockets).keys() == {"control", "vsock"}


@pytest.mark.usefixtures("folder")
def test_guest_is_told_as_it_would_boot() -> None:
    made = plan("-c", "3", "-m", "64", "-i", "initrd", "-r", "disk", "-p", "quiet")
    assert (made.vcpus, made.memory.size_bytes) == (3, 64 << 20)
    assert (made.kernel.path, made.kernel.entry) == ("vmlinux", ENTRY)
    assert made.kernel.parameters == "panic=-1 console=ttyS0 root=/dev/vda ro quiet"
    assert made.initrd is not None
    assert (made.initrd.path, made.initrd.size_bytes) == ("initrd", 5120)
    ram = sum(part.size_bytes for part in made.memory.map if part.kind == "ram")
    assert (64 << 20) - ram == 0x10_0000 - 0xA_0000  # the hole below 1 MiB


@pytest.mark.usefixtures("folder")
def test_devices_are_told_in_the_order_of_their_slots() -> None:
    words = ("-c", "2", "--block", "disk,ro,ops-size=5,ops-refill-time=10", "--balloon", "0")
    made = plan(*words)
    assert [(each.slot, each.name, each.policy) for each in made.devices] == [
        (1, "block:0", "block_device"),
        (2, "rng", "rng_device"),
        (3, "balloon", "balloon_device"),
    ]
    block = made.devices[0]
    assert (block.source, block.queues, block.descriptors) == ("disk", (256, 256), 1)
    assert block.rate_limits == {"ops-size": 5, "ops-refill-time": 10}
    assert block.jail[0].startswith("enter new namespaces: user, pid")
    assert block.jail[-1] == "load the seccomp filter block_device"


@pytest.mark.usefixtures("folder")
def test_every_policy_is_told_with_its_users_and_calls() -> None:
    made = plan("-d", "disk", "-d", "initrd", "--no-rng")
    assert {policy.name: policy.used_by for policy in made.policies} == {
        "file_parser": ("readers of files from outside, before the guest",),
        "line_relay": ("relay to syslog and datagram sockets",),
        "block_device": ("block:0", "block:1"),
        "vmm": ("vmm",),
        "vcpu": ("each vCPU thread of the vmm",),
        "warden": ("warden",),
        "warden_sealed": ("warden, once the guest runs",),
        "forge": ("forge",),
    }
    assert made.policies[2].allows == count(load_policy("block_device"))


@pytest.mark.usefixtures("folder")
def test_policy_of_the_control_process_is_told_where_there_is_a_socket() -> None:
    used_by = {policy.name: policy.used_by for policy in plan("-s", "sock").policies}
    assert used_by["control"] == ("control process",)


@pytest.mark.usefixtures("folder")
def test_without_the_sandbox_there_is_no_jail_and_no_policy() -> None:
    made = plan_run(config_of("--serial", "sink", "--disable-sandbox", "vmlinux"))
    assert not made.sandbox
    assert made.policies == ()
    assert [device.jail for device in made.devices] == [()]


def test_nothing_is_left_behind(folder: Path) -> None:
    before, fds = sorted(folder.iterdir()), sorted(os.listdir("/proc/self/fd"))
    serial = ("--serial", "file,path=new.log,num=2")
    made = plan("-s", "vm.sock", "--rwdisk", "disk", *serial)
    assert made.sockets.control == str(folder / "vm.sock")
    assert sorted(folder.iterdir()) == before
    assert sorted(os.listdir("/proc/self/fd")) == fds
    assert not set(END_SIGNALS) & signal.pthread_sigmask(signal.SIG_BLOCK, ())
    os.close(open_image(BlockSpec("disk")))  # nobody has locked it


@pytest.mark.usefixtures("folder")
def test_more_devices_than_slots_are_refused_before_anything_starts(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(X86, "slots", lambda _arch, _segments: range(1, 3))
    with pytest.raises(ConfigError, match="3 devices are above the limit of 2 PCI slots"):
        plan("-d", "disk", "--balloon", "0")


@pytest.mark.usefixtures("folder")
def test_cgroup_is_told_and_not_made(monkeypatch: pytest.MonkeyPatch) -> None:
    site = CgroupSite("/sys/fs/cgroup/ours", ("memory", "pids"))
    monkeypatch.setattr(cgroup, "find_site", lambda _choice: site)
    monkeypatch.setattr(VmCgroup, "create", None)  # calling it fails
    made = plan_run(config_of("--serial", "sink", "-m", "64", "vmlinux"))
    assert made.cgroup == site.path
    (rng,) = made.devices
    assert rng.memory_limit_bytes == memory_limit(64 << 20, 320 << 20, 0)
    assert rng.processes_limit == 1


@pytest.mark.usefixtures("folder")
def test_text_is_for_80_columns_and_a_terminal() -> None:
    text = as_text(plan("-d", "disk", "-p", "x=\x1b[2J", "-p", "word " * 40))
    assert max(map(len, text.splitlines())) <= 80
    assert "\x1b" not in text
    assert "x=\\x1b[2J" in text
    for told in (
        "starts at 0x1000040 by linux64",
        "1 x 256",
        "Jail of block:0",
    ):
        assert told in text
