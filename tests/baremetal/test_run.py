# SPDX-License-Identifier: BSD-3-Clause
"""``crosvm run`` with bare-metal guests: the whole monitor on this machine's own KVM."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from crosvm_py.exit_status import VmExit
from kvm.vm import host_has_hardware_virtualization
from tests.baremetal.vmm import crosvm
from tests.guests.baremetal.build import build_guest

pytestmark = [pytest.mark.kvm, pytest.mark.slow]

SECTOR_BYTES = 512
SECTORS = 8


@pytest.fixture(scope="session")
def guests(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("baremetal-run")


@pytest.fixture
def disk(tmp_path: Path) -> Path:
    path = tmp_path / "disk.img"
    path.write_bytes(b"".join(bytes([0x10 + n]) * SECTOR_BYTES for n in range(SECTORS)))
    return path


def run(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return crosvm("--extended-status", "run", *arguments)


def sector_line(sector: int) -> str:
    """Return what pci_block prints of a sector of our disk: status, length, bytes, checksum."""
    data = bytes([0x10 + sector]) * SECTOR_BYTES
    checksum = 0
    for byte in data:
        checksum = (checksum * 31 + byte) & 0xFFFF_FFFF
    written = SECTOR_BYTES + 1
    return (
        f"sector {sector}: status 00 written {written:04x} data {data[:8].hex()} sum {checksum:08x}"
    )


@pytest.mark.parametrize("pvh", [False, True], ids=["linux64", "pvh"])
@pytest.mark.parametrize("sandbox", [(), ("--disable-sandbox",)], ids=["jailed", "unconfined"])
def test_block_device_is_read_over_pci_with_msix(
    guests: Path, disk: Path, sandbox: tuple[str, ...], pvh: bool
) -> None:
    guest = build_guest("pci_block", guests, pvh=pvh)
    done = run(*sandbox, "-c", "2", "-m", "16", "-d", disk, guest)
    assert done.stdout.replace("\r", "").splitlines() == [
        f"capacity {SECTORS:08x}",
        *(sector_line(sector) for sector in range(3)),
        "pci_block: interrupts 3",
    ], done.stderr
    assert done.returncode == VmExit.RESET


@pytest.mark.parametrize(
    ("name", "output"),
    [
        ("hello", "hello from the guest"),
        ("self_ipi", "interrupts: 3"),
        ("triple_fault", "about to fault"),
        ("unmapped", "unmapped: ok"),
    ],
)
def test_guest_prints_and_ends_by_reset(guests: Path, name: str, output: str) -> None:
    done = run("-m", "16", build_guest(name, guests))
    assert done.stdout.strip() == output, done.stderr
    assert done.returncode == VmExit.RESET
    assert "Traceback" not in done.stderr


def test_heap_of_huge_pages_in_the_environment_ends_no_device(
    guests: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "v").mkdir()
    monkeypatch.setenv("GLIBC_TUNABLES", "glibc.malloc.hugetlb=2")
    words = ["--balloon", "0", "--vsock", f"3,socket={tmp_path}/v/s"]
    done = run("-m", "16", *words, build_guest("hello", guests))
    assert done.returncode == VmExit.RESET, done.stderr
    assert "killed" not in done.stderr


def test_guest_without_a_disk_finds_none(guests: Path) -> None:
    done = run("-m", "16", "--no-rng", build_guest("pci_block", guests))
    assert done.stdout.strip() == "pci_block: no device", done.stderr
    assert done.returncode == VmExit.RESET


@pytest.mark.skipif(host_has_hardware_virtualization(), reason="hardware runs every instruction")
def test_instruction_beyond_the_emulator_ends_as_a_crash_that_names_the_host(guests: Path) -> None:
    done = run("-m", "16", build_guest("cmpxchg16b", guests))
    assert done.stdout.strip() == "before", done.stderr
    assert done.returncode == VmExit.CRASH
    assert "KVM cannot emulate the instruction at 0x2" in done.stderr
    assert "bytes f0 48 0f c7" in done.stderr
    assert "no hardware virtualization" in done.stderr


def test_cache_that_cannot_be_used_is_told_once(guests: Path, tmp_path: Path) -> None:
    """Although more than one process of a run loads policies."""
    (tmp_path / "crosvm-py").write_text("no folder")
    environment = os.environ | {"XDG_CACHE_HOME": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-m", "crosvm_py", "run", "-m", "16", build_guest("hello", guests)],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stderr.count("is not used") == 1, done.stderr
