# SPDX-License-Identifier: BSD-3-Clause
"""Memory that is added to a running VM, by real processes, and what is left of a refusal."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from crosvm_py.control.socket_client import ControlError, ask
from crosvm_py.requests.devices import DeviceList, ListDevices
from crosvm_py.requests.resize import Resize, Resized
from crosvm_py.requests.vm import QueryVm, VmFacts
from tests.baremetal.vmm import Vmm, crosvm, eventually
from tests.guests.baremetal.build import build_guest

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = [pytest.mark.kvm, pytest.mark.slow]

MIB = 1 << 20


@pytest.fixture(scope="module")
def echo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_guest("echo", tmp_path_factory.mktemp("memory"))


@pytest.fixture
def vmm(echo: Path, tmp_path: Path) -> Iterator[Vmm]:
    with Vmm(["-m", "16,max=784", "-s", tmp_path / "sock", echo]) as vmm:
        vmm.wait_for(b"echo")
        assert crosvm("devices", tmp_path / "sock").returncode == 0  # it has started
        yield vmm


def refusal(path: Path, size_bytes: int) -> str:
    with pytest.raises(ControlError) as caught:
        ask(str(path), Resize(memory_bytes=size_bytes))
    return str(caught.value)


def memory_bytes(path: Path) -> int:
    facts = ask(str(path), QueryVm())
    assert isinstance(facts, VmFacts)
    return facts.memory_bytes


def pid_of_device(path: Path) -> int:
    answer = ask(str(path), ListDevices())
    assert isinstance(answer, DeviceList)
    (pid,) = (device.pid for device in answer.devices if device.name == "virtio-mem")
    return pid


def descriptors(vmm: Vmm) -> list[int]:
    return [len(os.listdir(f"/proc/{pid}/fd")) for pid in vmm.processes().all()]


@pytest.mark.usefixtures("vmm")
def test_memory_is_added_under_all_filters(tmp_path: Path) -> None:
    sock = tmp_path / "sock"
    for size in (144 * MIB, 400 * MIB, 400 * MIB, 144 * MIB):
        assert ask(str(sock), Resize(memory_bytes=size)) == Resized(is_busy=False)
    assert memory_bytes(sock) == 400 * MIB


def test_sizes_that_cannot_be_leave_nothing_a_hundred_times(vmm: Vmm, tmp_path: Path) -> None:
    sock = tmp_path / "sock"
    assert "multiples of 128 MiB" in refusal(sock, 17 * MIB)
    before = descriptors(vmm)
    for _ in range(100):
        assert "multiples of 128 MiB" in refusal(sock, 17 * MIB)
        assert "at most 784 MiB" in refusal(sock, 16 * MIB + 7 * 128 * MIB)
    # A client that has just left may still be counted before.
    assert eventually(lambda: sum(descriptors(vmm)) <= sum(before))
    assert memory_bytes(sock) == 16 * MIB


def test_device_of_virtio_mem_is_told_and_killed(echo: Path, tmp_path: Path) -> None:
    sock = tmp_path / "sock"
    words: list[str | Path] = ["-m", "16,max=144,hotplug-method=virtio-mem", "-s", sock, echo]
    with Vmm(words) as vmm:
        vmm.wait_for(b"echo")
        assert ask(str(sock), Resize(memory_bytes=80 * MIB)) == Resized(is_busy=False)
        assert "from 16 to 144 MiB" in refusal(sock, 8 * MIB)
        assert "multiples of 2 MiB" in refusal(sock, 17 * MIB)
        assert memory_bytes(sock) == 16 * MIB  # the guest has no driver
        old = pid_of_device(sock)
        os.kill(old, signal.SIGKILL)
        assert eventually(lambda: pid_of_device(sock) not in (0, old))
        assert ask(str(sock), Resize(memory_bytes=16 * MIB)) == Resized(is_busy=False)


def test_memory_is_taken_at_the_start(echo: Path, tmp_path: Path) -> None:
    with Vmm(["-m", "16,prefault,thp=false", "-s", tmp_path / "sock", echo]) as vmm:
        vmm.wait_for(b"echo")
        files = Path(f"/proc/{vmm.process.pid}/map_files")
        sizes = {
            os.stat(each).st_blocks
            for each in files.iterdir()
            if "crosvm_guest" in os.readlink(each)
        }
        assert sizes == {16 * MIB // 512}


def test_pool_without_pages_is_named_with_a_remedy(echo: Path) -> None:
    run = crosvm("run", "-m", "2t,hugepages", echo)
    assert run.returncode == 1
    assert "huge pages of 2 MiB (the host has " in run.stderr


FREE = Path("/sys/kernel/mm/hugepages/hugepages-2048kB/free_hugepages")


@pytest.mark.skipif(
    not FREE.exists() or int(FREE.read_text()) < 8, reason="the host has no free huge pages"
)
def test_memory_of_a_pool_is_used_and_given_back(echo: Path, tmp_path: Path) -> None:
    before = FREE.read_text()
    words: list[str | Path] = [
        "-m",
        "16,hugepages,prefault",
        "-s",
        tmp_path / "sock",
        "--balloon",
        "0",
        echo,
    ]
    with Vmm(words) as vmm:
        vmm.wait_for(b"echo")
        assert int(before) - int(FREE.read_text()) == 8
    assert FREE.read_text() == before


def guest_does(vmm: Vmm, key: bytes, *answers: bytes) -> None:
    """Have the guest do something, and wait for what it says then."""
    vmm.output = b""
    vmm.type(key)
    vmm.wait_for(b"\n")
    for answer in answers:
        assert answer in vmm.output


def test_guest_finds_modules_uses_them_and_attacks_their_registers(tmp_path: Path) -> None:
    guest = build_guest("memory_hotplug", tmp_path)
    sock = tmp_path / "sock"
    with Vmm(["-m", "16,max=400", "-s", sock, guest]) as vmm:
        vmm.wait_for(b"memory\n")
        guest_does(vmm, b"s", b"scanned")
        guest_does(vmm, b"a", b"attacked")
        assert ask(str(sock), Resize(memory_bytes=144 * MIB)) == Resized(is_busy=False)
        guest_does(vmm, b"s", b"100000000+08000000 new good scanned")
        guest_does(vmm, b"a", b"attacked")
        assert ask(str(sock), Resize(memory_bytes=400 * MIB)) == Resized(is_busy=False)
        guest_does(vmm, b"s", b"100000000+08000000 good 108000000+10000000 new good scanned")
        guest_does(vmm, b"s", b"100000000+08000000 good 108000000+10000000 good scanned")
        assert memory_bytes(sock) == 400 * MIB
        vmm.type(b"q")
        vmm.wait_for(b"bye")


@pytest.fixture(scope="module")
def rebooting(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A guest that resets the machine when it is told so by "r"."""
    return build_guest("cpu_hotplug", tmp_path_factory.mktemp("reboot"))


def test_size_that_was_asked_for_is_that_of_the_guest_after_a_reset(
    rebooting: Path, tmp_path: Path
) -> None:
    sock = tmp_path / "sock"
    with Vmm(["--reboot", "-m", "16,max=400", "-s", sock, rebooting]) as vmm:
        vmm.wait_for(b"cpus\n")
        ask(str(sock), Resize(memory_bytes=400 * MIB))
        guest_does(vmm, b"r", b"cpus\n")
        assert memory_bytes(sock) == 400 * MIB
        ask(str(sock), Resize(memory_bytes=144 * MIB))
        assert memory_bytes(sock) == 400 * MIB
        for _ in range(10):
            guest_does(vmm, b"r", b"cpus\n")
        assert memory_bytes(sock) == 144 * MIB
        ask(str(sock), Resize(memory_bytes=272 * MIB))
        assert memory_bytes(sock) == 272 * MIB


def test_reset_leaves_virtio_mem_without_memory(rebooting: Path, tmp_path: Path) -> None:
    sock = tmp_path / "sock"
    words: list[str | Path] = [
        "--reboot",
        "-m",
        "16,max=400,hotplug-method=virtio-mem",
        "-s",
        sock,
        rebooting,
    ]
    with Vmm(words) as vmm:
        vmm.wait_for(b"cpus\n")
        ask(str(sock), Resize(memory_bytes=400 * MIB))
        for _ in range(3):
            guest_does(vmm, b"r", b"cpus\n")
        assert memory_bytes(sock) == 16 * MIB
