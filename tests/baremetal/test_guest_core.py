# SPDX-License-Identifier: BSD-3-Clause
"""Core files of running guests, as ``crosvm coredump`` and vm.coredump write them."""

from __future__ import annotations

import os
import resource
import stat
from pathlib import Path
from struct import unpack_from
from typing import TYPE_CHECKING, NamedTuple

import pytest

from crosvm_py.control.socket_client import ControlError, ask
from crosvm_py.requests.core_dump import DumpCore
from crosvm_py.requests.resize import Resize, Resized
from crosvm_py.requests.vm import RUNNING, SUSPENDED, QueryVm, VmFacts
from tests.baremetal.test_cloud_hypervisor import config, program, reasons
from tests.baremetal.test_core_dump import PATTERN, PATTERN_GPA
from tests.baremetal.vmm import PATIENCE_SECONDS, Vmm, crosvm, eventually
from tests.guests.baremetal.build import build_guest

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = [pytest.mark.kvm, pytest.mark.slow]

_PT_LOAD = 1
_PT_NOTE = 4
_RIP_IN_PRSTATUS = 112 + 16 * 8


class Note(NamedTuple):
    name: bytes
    kind: int
    text: bytes


class Core(NamedTuple):
    """An ELF core file: its notes and, by address, the offset and size of each part of memory."""

    data: bytes
    notes: list[Note]
    memory: dict[int, tuple[int, int]]

    def at(self, gpa: int, size: int) -> bytes:
        for start, (offset, size_bytes) in self.memory.items():
            if start <= gpa < start + size_bytes:
                return self.data[offset + gpa - start :][:size]
        raise KeyError(gpa)


def read_core(path: Path) -> Core:
    data = path.read_bytes()
    assert data[:7] == b"\x7fELF\x02\x01\x01"
    kind, machine = unpack_from("<HH", data, 16)
    assert (kind, machine) == (4, 62)
    (count,) = unpack_from("<H", data, 56)
    memory, notes = {}, []
    for number in range(count):
        at = 64 + 56 * number
        kind, _, offset, _, gpa, size, in_memory, _ = unpack_from("<IIQQQQQQ", data, at)
        assert size == in_memory
        assert offset + size <= len(data)
        if kind == _PT_LOAD:
            memory[gpa] = (offset, size)
        else:
            assert kind == _PT_NOTE
            notes = read_notes(data[offset : offset + size])
    return Core(data, notes, memory)


def read_notes(data: bytes) -> list[Note]:
    notes = []
    while data:
        name_bytes, text_bytes, kind = unpack_from("<III", data)
        text_at = 12 + -(-name_bytes // 4) * 4
        text = data[text_at : text_at + text_bytes]
        notes.append(Note(data[12 : 12 + name_bytes].rstrip(b"\0"), kind, text))
        data = data[text_at + -(-text_bytes // 4) * 4 :]
    return notes


@pytest.fixture(scope="module")
def pattern(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_guest("pattern", tmp_path_factory.mktemp("core"))


@pytest.fixture
def control(tmp_path: Path) -> Path:
    return tmp_path / "vm.sock"


@pytest.fixture
def vm(pattern: Path, control: Path) -> Iterator[Vmm]:
    with Vmm(["-m", "16,max=144", "-c", "2", "-s", control, pattern]) as vmm:
        vmm.wait_for(b"written")
        yield vmm
        assert crosvm("stop", control).returncode == 0
        assert vmm.nothing_is_left()


def state(control: Path) -> str:
    facts = ask(str(control), QueryVm())
    assert isinstance(facts, VmFacts)
    return facts.state


def refusal(control: Path, path: Path) -> str:
    with pytest.raises(ControlError) as caught:
        ask(str(control), DumpCore(os.fsencode(path)))
    return str(caught.value)


def test_core_has_memory_and_registers_of_a_guest_that_goes_on(
    vm: Vmm, control: Path, tmp_path: Path, pattern: Path
) -> None:
    path = tmp_path / "core"
    done = crosvm("coredump", path, control)
    assert (done.returncode, done.stderr) == (0, "")
    assert state(control) == RUNNING
    core = read_core(path)
    assert PATTERN in core.at(PATTERN_GPA, 64 * 1024)
    assert [(note.name, note.kind, len(note.text)) for note in core.notes] == 2 * [
        (b"CORE", 1, 336),
        (b"QEMU", 0, 440),
    ]
    (rip,) = unpack_from("<Q", core.notes[0].text, _RIP_IN_PRSTATUS)
    (same,) = unpack_from("<Q", core.notes[1].text, 8 + 16 * 8)
    assert rip == same
    assert core.at(rip, 16) in pattern.read_bytes()
    found = path.stat()
    assert stat.S_IMODE(found.st_mode) == 0o600
    assert sum(size for _, size in core.memory.values()) == 16 << 20
    assert found.st_blocks * 512 < 8 << 20, "holes are written"


def test_memory_that_was_added_is_in_the_core_and_what_can_come_is_not(
    vm: Vmm, control: Path, tmp_path: Path
) -> None:
    assert isinstance(ask(str(control), Resize(memory_bytes=144 << 20)), Resized)
    assert crosvm("coredump", tmp_path / "core", control).returncode == 0
    memory = read_core(tmp_path / "core").memory
    assert sum(size for _, size in memory.values()) == 144 << 20
    assert 128 << 20 in {size for _, size in memory.values()}


def test_suspended_vm_stays_so(vm: Vmm, control: Path, tmp_path: Path) -> None:
    assert crosvm("suspend", control).returncode == 0
    for name in ("first", "second"):
        assert crosvm("coredump", tmp_path / name, control).returncode == 0
        assert state(control) == SUSPENDED
    assert (tmp_path / "first").read_bytes() == (tmp_path / "second").read_bytes()


def test_only_a_new_file_is_written(vm: Vmm, control: Path, tmp_path: Path) -> None:
    there = tmp_path / "there"
    there.write_bytes(b"mine")
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    for path, reason in (
        (there, "File exists"),
        (tmp_path, "File exists"),
        (tmp_path / "link", "File exists"),
        (tmp_path / "no" / "core", "No such file or directory"),
        (tmp_path / ".." / "core", "has no .. in it"),
        (Path("core"), "is absolute"),
    ):
        text = refusal(control, path)
        assert reason in text
        assert str(path) in text
    assert there.read_bytes() == b"mine"
    assert state(control) == RUNNING
    assert {path.name for path in tmp_path.iterdir()} == {"there", "link", "vm.sock"}


def test_full_disk_leaves_an_empty_file_and_a_vm_that_goes_on(
    vm: Vmm, control: Path, tmp_path: Path
) -> None:
    resource.prlimit(vm.process.pid, resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))
    path = tmp_path / "core"
    assert "File too large; the file is left empty" in refusal(control, path)
    assert path.read_bytes() == b""
    assert state(control) == RUNNING


def test_client_of_the_api_dumps(tmp_path: Path, pattern: Path) -> None:
    path = tmp_path / "a core"
    body = {"destination_url": f"file://{tmp_path}/a%20core"}
    with program(tmp_path) as ch:
        assert ch.put("vm.coredump", body) == 500
        assert ch.put("vm.create", config(pattern)) == 204
        assert ch.put("vm.coredump", body) == 500
        assert ch.put("vm.boot") == 204
        ch.wait_for(b"written")
        for url in ("/core", "file://core", "file:///tmp/../core", "http://a/b", "file:///%4"):
            assert ch.put("vm.coredump", {"destination_url": url}) == 500
        assert not path.exists()
        assert ch.put("vm.coredump", body) == 204
        assert ch.state() == "Running"
        again = ch.call("PUT", "vm.coredump", body)
        assert again.status == 500
        assert reasons(again)[-1] == f"make {path}: File exists"
        assert ch.put("vm.pause") == 204
        other = {"destination_url": f"file://{tmp_path}/other"}
        assert ch.put("vm.coredump", other) == 204
        assert ch.state() == "Paused"
        assert ("vm", "coredumping") in ch.events()
        assert ch.put("vm.shutdown") == 204
        assert ch.put("vm.coredump", {"destination_url": f"{other}2"}) == 500
        assert ch.put("vmm.shutdown") == 200
        assert ch.process.wait(PATIENCE_SECONDS) == 0
    assert PATTERN in read_core(path).at(PATTERN_GPA, 64 * 1024)
    assert eventually(lambda: not (tmp_path / "api").exists())
