# SPDX-License-Identifier: BSD-3-Clause
"""What a guest wrote is in no core dump, whichever process dies."""

from __future__ import annotations

import os
import re
import resource
import signal
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Final

import pytest

from sys_util.guest_memory import MEMFD_NAME
from tests.baremetal.vmm import PATIENCE_SECONDS, ROOT, Vmm, children, eventually, name_of
from tests.guests.baremetal.build import build_guest

if TYPE_CHECKING:
    from collections.abc import Iterator

PATTERN_GPA: Final = 0x80_0000
FACTOR: Final = 0x9E37_79B9_7F4A_7C15
# Words in the middle of what the guest writes.
PATTERN: Final = b"".join(
    (number * FACTOR % 2**64).to_bytes(8, "little") for number in range(1000, 1008)
)
CORE_PATTERN: Final = Path("/proc/sys/kernel/core_pattern").read_text().strip()

pytestmark = [pytest.mark.kvm, pytest.mark.slow]
needs_core = pytest.mark.skipif(
    not CORE_PATTERN.startswith("core")
    or resource.getrlimit(resource.RLIMIT_CORE)[1] != resource.RLIM_INFINITY,
    reason="this machine puts core dumps elsewhere",
)


@pytest.fixture(scope="module")
def guest(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_guest("pattern", tmp_path_factory.mktemp("core"))


@contextmanager
def running(guest: Path, directory: Path, *options: str) -> Iterator[subprocess.Popen[bytes]]:
    """Run the guest, with core dumps of any size in ``directory``, until it has written."""
    disk = directory / "disk.img"
    disk.write_bytes(bytes(4096))
    command = [sys.executable, "-m", "crosvm_py", "run", "-m", "16", *options]
    command += ["--rwdisk", str(disk), str(guest)]
    unlimited = (resource.RLIM_INFINITY, resource.RLIM_INFINITY)
    with subprocess.Popen(
        command,
        cwd=directory,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_CORE, unlimited),
    ) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == b"written\n"
            yield process
        finally:
            process.kill()


def guest_memory(pid: int) -> bytes:
    """Return the pattern's place in guest memory, as the process sees it."""
    for line in Path(f"/proc/{pid}/maps").read_text().splitlines():
        if f"memfd:{MEMFD_NAME}" in line:
            start = int(line.split("-")[0], 16)
            with open(f"/proc/{pid}/mem", "rb") as memory:
                memory.seek(start + PATTERN_GPA)
                return memory.read(64 * 1024)
    raise AssertionError("no guest memory")


def find(vmm: int, name: str) -> int:
    """Return the vmm, or the process of a device."""
    if name == "vmm":
        return vmm
    (warden,) = (pid for pid in children(vmm) if name_of(pid) == "crosvm-warden")
    (device,) = (pid for pid in children(warden) if name_of(pid) == name)
    return device


def cores(directory: Path) -> list[Path]:
    return list(directory.glob("core*"))


@needs_core
@pytest.mark.parametrize("name", ["vmm", "block:0"])
def test_core_dump_holds_no_guest_memory(guest: Path, tmp_path: Path, name: str) -> None:
    with running(guest, tmp_path, "--disable-sandbox", "--device-restart=never") as process:
        pid = find(process.pid, name)
        assert PATTERN in guest_memory(pid), "the guest has not written it, or not there"
        os.kill(pid, signal.SIGABRT)
        assert process.wait(PATIENCE_SECONDS) != 0
    assert eventually(lambda: bool(cores(tmp_path)))
    (core,) = cores(tmp_path)
    dumped = core.read_bytes()
    assert b"crosvm_py" in dumped, "it is no dump of ours"
    assert PATTERN not in dumped


@needs_core
def test_confined_vmm_leaves_no_core_dump(guest: Path, tmp_path: Path) -> None:
    with running(guest, tmp_path) as process:
        process.send_signal(signal.SIGABRT)
        assert process.wait(PATIENCE_SECONDS) != 0
    assert cores(tmp_path) == []


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may look at confined processes")
def test_guest_memory_is_marked_in_every_process(guest: Path) -> None:
    with Vmm(["-m", "16", str(guest)]) as vmm:
        vmm.wait_for(b"written")
        found = vmm.processes()
        for pid in (found.vmm, *found.devices.values()):
            smaps = Path(f"/proc/{pid}/smaps").read_text()
            mappings = re.findall(rf"memfd:{MEMFD_NAME}.*?VmFlags:([^\n]*)", smaps, re.DOTALL)
            assert mappings, name_of(pid)
            assert all("dd" in flags.split() for flags in mappings)
        assert MEMFD_NAME not in Path(f"/proc/{found.warden}/smaps").read_text()
