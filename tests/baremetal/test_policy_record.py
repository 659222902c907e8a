# SPDX-License-Identifier: BSD-3-Clause
"""``crosvm policy record`` with bare-metal guests: what it writes holds, and what it refuses."""

from __future__ import annotations

import os
import signal
import subprocess
from typing import TYPE_CHECKING

import pytest

from crosvm_py.control import socket_client as client
from crosvm_py.exit_status import VmExit
from crosvm_py.requests.devices import DeviceInfo, DeviceList, ListDevices
from seccomp import load_policy
from seccomp.loader import parse_policy, policy_path
from seccomp.policy_text import is_copy, runs_of
from seccomp.record import excess
from tests.baremetal.vmm import Vmm, children, crosvm, eventually
from tests.guests.baremetal.build import build_guest

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = [pytest.mark.kvm, pytest.mark.slow]

RECORDED = ("rng_device", "block_device", "vmm", "vcpu")


@pytest.fixture(scope="module")
def guests(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("policy")
    return {name: build_guest(name, folder) for name in ("pci_block", "echo")}


@pytest.fixture
def disk(tmp_path: Path) -> Path:
    path = tmp_path / "disk.img"
    path.write_bytes(bytes(8192))
    return path


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "policies"


def record(
    out: Path,
    *run: str | Path,
    devices: tuple[str, ...] = ("rng", "block", "vmm", "vcpu"),
    more: str = "",
) -> subprocess.CompletedProcess[str]:
    options = [more] if more else []
    return crosvm(
        "--extended-status",
        "policy",
        "record",
        *devices,
        "-o",
        out,
        *options,
        "--",
        "-m",
        "16",
        *run,
    )


def test_recorded_policies_let_the_same_guest_run_and_nothing_new(
    guests: dict[str, Path], disk: Path, out: Path
) -> None:
    run = ("--rwdisk", disk, guests["pci_block"])
    done = record(out, *run)
    assert done.returncode == VmExit.RESET, done.stderr
    for name in RECORDED:
        tree = parse_policy(str(out / f"{name}.policy"))
        assert excess(tree, parse_policy(policy_path(name))) == []
        assert f"{out}/{name}.policy: allows " in done.stderr
        assert len(runs_of((out / f"{name}.policy").read_bytes())) == 1
    assert (
        "rng, block, vmm, vcpu: next to nothing is denied; the guest must be trusted" in done.stderr
    )
    again = crosvm("--extended-status", "run", "--seccomp-policy-dir", out, "-m", "16", *run)
    assert again.returncode == VmExit.RESET, again.stderr
    assert again.stdout == done.stdout
    assert "interrupts 3" in done.stdout


def test_policy_of_another_device_is_a_copy_that_is_recorded_later(
    guests: dict[str, Path], disk: Path, out: Path
) -> None:
    run = ("--rwdisk", disk, guests["pci_block"])
    assert record(out, *run, devices=("rng",)).returncode == VmExit.RESET
    assert is_copy((out / "block_device.policy").read_bytes())
    assert not is_copy((out / "rng_device.policy").read_bytes())
    assert record(out, *run, devices=("block",), more="--exact").returncode == VmExit.RESET
    allowed = parse_policy(str(out / "block_device.policy")).rules.values()
    assert {rule.name for rule in allowed if rule.allow} < {
        *("epoll_wait", "epoll_ctl", "read", "write", "recvmsg", "close", "exit_group"),
        *("preadv", "preadv2", "brk", "mmap", "munmap", "madvise", "mremap", "clock_gettime"),
        *("sendmsg", "sendto"),
    }


def test_all_records_every_device_of_the_run(
    guests: dict[str, Path], disk: Path, out: Path
) -> None:
    done = record(out, "--rwdisk", disk, guests["pci_block"], devices=("all", "vmm", "vcpu"))
    assert done.returncode == VmExit.RESET, done.stderr
    recorded = {path.stem for path in out.iterdir() if not is_copy(path.read_bytes())}
    assert recorded == set(RECORDED)


def test_terminal_is_the_guests_while_it_is_recorded(
    guests: dict[str, Path], disk: Path, out: Path
) -> None:
    verb = ("policy", "record", "block", "-o", out, "--")
    run = ("-m", "16", "--rwdisk", disk, guests["echo"])
    with Vmm(run, verb=verb, terminal=True) as recorder:
        recorder.wait_for(b"echo")
        assert recorder.is_raw()
        recorder.type(b"k")
        recorder.wait_for(b"<6b>")
        recorder.type(b"\x01x")
        assert recorder.wait() == VmExit.STOPPED
        assert recorder.is_restored()
    assert b"# run: " in (out / "block_device.policy").read_bytes()


def test_merge_adds_and_without_it_nothing_is_replaced(
    guests: dict[str, Path], disk: Path, out: Path
) -> None:
    run = ("--rwdisk", disk, guests["pci_block"])
    assert record(out, guests["pci_block"], devices=("rng",)).returncode == VmExit.RESET
    before = (out / "rng_device.policy").read_bytes()
    refused = record(out, *run, devices=("rng",))
    assert refused.returncode == VmExit.ERROR
    assert "rng_device.policy is there already; --merge adds to it" in refused.stderr
    assert (out / "rng_device.policy").read_bytes() == before
    assert record(out, *run, devices=("rng",), more="--merge").returncode == VmExit.RESET
    assert len(runs_of((out / "rng_device.policy").read_bytes())) == 2
    assert load_policy("rng_device", directory=str(out)).bpf


def test_signal_ends_the_vm_and_what_was_seen_is_written(
    guests: dict[str, Path], disk: Path, out: Path
) -> None:
    verb = ("policy", "record", "block", "-o", out, "--", "run")
    with Vmm(["-m", "16", "--rwdisk", disk, guests["echo"]], verb=verb) as recorder:
        recorder.wait_for(b"echo")
        recorder.process.send_signal(signal.SIGTERM)
        assert recorder.wait() == VmExit.STOPPED
    assert b"# run: " in (out / "block_device.policy").read_bytes()


def test_device_that_is_started_again_is_recorded_again(
    guests: dict[str, Path], disk: Path, out: Path, tmp_path: Path
) -> None:
    control = str(tmp_path / "vm.sock")
    verb = ("policy", "record", "block", "-o", out, "--", "-s", control)

    def block() -> DeviceInfo:
        answer = client.ask(control, ListDevices())
        assert isinstance(answer, DeviceList)
        return next(device for device in answer.devices if device.name == "block:0")

    with Vmm(["-m", "16", "--rwdisk", disk, guests["echo"]], verb=verb) as recorder:
        recorder.wait_for(b"echo")
        first = block().pid
        os.kill(first, signal.SIGKILL)
        assert eventually(lambda: block().pid != first and block().state == "idle")
        recorder.process.send_signal(signal.SIGTERM)
        assert recorder.wait() == VmExit.STOPPED
    (run,) = runs_of((out / "block_device.policy").read_bytes())
    assert "calls of 2 processes: crosvm run" in run


def test_vm_ends_with_its_recorder(guests: dict[str, Path], disk: Path, out: Path) -> None:
    verb = ("policy", "record", "block", "-o", out, "--")
    with Vmm(["-m", "16", "--rwdisk", disk, guests["echo"]], verb=verb) as recorder:
        recorder.wait_for(b"echo")
        (vmm,) = children(recorder.process.pid)
        recorder.process.kill()
        assert eventually(lambda: not os.path.exists(f"/proc/{vmm}"))


@pytest.mark.parametrize(
    ("devices", "more", "words"),
    [
        (("vsock",), (), "policy record: nothing in this run has the policy vsock_device"),
        (("rng",), ("--disable-sandbox",), "policy record: without the sandbox"),
        (("rng",), ("--seccomp-policy-dir", "/nowhere"), "policy /nowhere/warden.policy does not"),
        (("rng",), ("-i", "/nowhere"), "initrd /nowhere"),
    ],
)
def test_run_that_cannot_be_recorded_writes_nothing(
    guests: dict[str, Path],
    out: Path,
    devices: tuple[str, ...],
    more: tuple[str, ...],
    words: str,
) -> None:
    done = record(out, *more, guests["pci_block"], devices=devices)
    assert done.returncode == VmExit.ERROR
    assert words in done.stderr
    assert not out.exists() or not list(out.iterdir())
