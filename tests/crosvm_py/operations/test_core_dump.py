# SPDX-License-Identifier: BSD-3-Clause
"""Core files: their layout, and what becomes of a dump that cannot go on."""

from __future__ import annotations

import mmap
import os
from struct import unpack_from
from typing import TYPE_CHECKING, cast

import pytest

from crosvm_py.machine.board import Board
from crosvm_py.machine.vcpu import VcpuSet
from crosvm_py.operations.core_dump import CoreDumper
from crosvm_py.operations.suspension import Suspension
from crosvm_py.requests.pending import Pending
from crosvm_py.requests.protocol import Done, Failed
from crosvm_py.vmm.core_file import lay_out
from sys_util.errors import ConfigError
from sys_util.event_loop import EventLoop
from sys_util.guest_memory import GuestMemory

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from crosvm_py.requests.protocol import Response
    from sys_util.guest_memory import MemoryRegion

MIB = 1 << 20
PAGE = mmap.PAGESIZE
MEMORY_BYTES = 16 * MIB


class FakeMachine:
    """What a dump needs of a machine."""

    def __init__(self, memory: GuestMemory) -> None:
        self.memory = memory

    @property
    def present_regions(self) -> tuple[MemoryRegion, ...]:
        return self.memory.boot_regions

    def core_notes(self, absent: frozenset[int]) -> bytes:
        assert absent == frozenset({3})
        return b"note"


class FakeVcpus:
    absent = frozenset({3})


class FakeSuspension:
    """A suspension that does at once what it is asked for, or fails."""

    def __init__(self) -> None:
        self.is_suspended = False
        self.is_busy = False
        self.refusal = ""

    def suspend(self) -> Response:
        if self.refusal:
            return Failed(self.refusal)
        self.is_suspended = True
        return Done()

    def resume(self) -> Response:
        assert not self.is_busy
        self.is_suspended = False
        return Done()

    def hold(self) -> None:
        self.is_busy = True

    def let_go(self) -> None:
        self.is_busy = False


class Rig:
    """A dumper of 16 MiB of memory."""

    def __init__(self, directory: Path) -> None:
        self.loop = EventLoop()
        self.memory = GuestMemory.create([(0, MEMORY_BYTES)])
        self.suspension = FakeSuspension()
        self.path = directory / "core"
        self.answers: list[Response] = []
        self.dumper = CoreDumper(
            self.loop,
            cast("Board", FakeMachine(self.memory)),
            cast("VcpuSet", FakeVcpus()),
            cast("Suspension", self.suspension),
        )

    def fds(self) -> list[int]:
        flags = os.O_WRONLY | os.O_CREAT
        return [os.open(self.path, flags, 0o600)]

    def start(self) -> None:
        self.dumper.take_fds = self.fds
        pending = self.dumper.dump()
        assert isinstance(pending, Pending)
        pending.deliver_to(self.answers.append)

    def run(self) -> list[Response]:
        while not self.answers:
            self.loop.run_once()
        return self.answers

    def close(self) -> None:
        self.memory.close()
        self.loop.close()


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[Rig]:
    rig = Rig(tmp_path)
    before = os.listdir("/proc/self/fd")
    yield rig
    assert os.listdir("/proc/self/fd") == before
    rig.close()


def test_pages_are_at_their_places_and_holes_stay_holes(rig: Rig) -> None:
    places = (0, 3 * PAGE, MEMORY_BYTES - PAGE)
    for at in places:
        rig.memory.write(at, b"%12d" % at)
    rig.start()
    assert rig.run() == [Done()]
    data = rig.path.read_bytes()
    offset, gpa, _, size = unpack_from("<QQQQ", data, 64 + 56 + 8)
    assert (gpa, size, len(data)) == (0, MEMORY_BYTES, offset + MEMORY_BYTES)
    assert data[offset:] == rig.memory.read(0, MEMORY_BYTES)
    assert rig.path.stat().st_blocks * 512 < 8 * MIB
    assert not rig.suspension.is_suspended


def test_loop_runs_and_a_second_dump_is_refused_meanwhile(rig: Rig) -> None:
    rig.memory.write(0, bytes([1]) * MEMORY_BYTES)
    rig.start()
    assert not rig.path.read_bytes()[:4].strip(b"\0"), "the header comes last"
    seen: list[str] = []

    def look() -> None:
        with pytest.raises(ConfigError, match="another core dump"):
            rig.dumper.check()
        with pytest.raises(ConfigError, match="another core dump"):
            rig.dumper.dump()
        seen.append("a client")
        assert not rig.answers

    rig.loop.call_later(0.0, look)
    assert rig.run() == [Done()]
    assert seen == ["a client"]
    rig.dumper.check()


def test_dump_of_a_suspended_vm_leaves_it_so(rig: Rig) -> None:
    rig.suspension.is_suspended = True
    rig.start()
    assert rig.run() == [Done()]
    assert rig.suspension.is_suspended
    assert not rig.suspension.is_busy


def test_vm_that_ends_leaves_an_empty_file(rig: Rig) -> None:
    rig.memory.write(0, bytes([1]) * MEMORY_BYTES)
    rig.start()
    rig.loop.run_once()
    rig.dumper.close()
    assert rig.answers == [Failed("the VM ends")]
    assert rig.path.read_bytes() == b""
    rig.loop.run_once(0.0)  # what was to come next does nothing
    rig.dumper.close()


@pytest.mark.parametrize("error", [28, 5])
def test_host_that_refuses_leaves_an_empty_file(
    rig: Rig, monkeypatch: pytest.MonkeyPatch, error: int
) -> None:
    rig.memory.write(0, bytes([1]) * MEMORY_BYTES)
    rig.start()
    rig.loop.run_once()

    def refuse(_fd: int, _data: memoryview) -> int:
        raise OSError(error, os.strerror(error))

    monkeypatch.setattr("crosvm_py.operations.core_dump.os.write", refuse)
    rig.loop._run_timers()
    monkeypatch.undo()
    assert rig.answers == [Failed(os.strerror(error))]
    assert rig.path.read_bytes() == b""
    assert not rig.suspension.is_suspended


def test_vm_that_cannot_be_suspended_is_not_dumped(rig: Rig) -> None:
    rig.suspension.refusal = "the vCPUs did not stand still"
    rig.start()
    assert rig.answers == [Failed("the vCPUs did not stand still")]
    assert rig.path.read_bytes() == b""
    rig.dumper.check()


def test_only_one_new_regular_file_is_written(rig: Rig) -> None:
    rig.path.write_bytes(b"mine")
    null = os.open("/dev/null", os.O_WRONLY)
    two = [os.dup(null), os.dup(null)]
    for fds in (rig.fds(), [null], [], two):
        rig.dumper.take_fds = fds.copy
        with pytest.raises(ConfigError, match="one new file"):
            rig.dumper.dump()
    assert rig.path.read_bytes() == b"mine"
    assert not rig.suspension.is_suspended


def test_number_of_segments_may_have_more_than_16_bits() -> None:
    few, many = ([(at * PAGE, PAGE) for at in range(count)] for count in (0xFFFD, 0xFFFE))
    core = lay_out(few, b"")
    assert unpack_from("<H", core.header, 56) == (0xFFFE,)
    assert unpack_from("<Q", core.header, 40) == (0,)
    core = lay_out(many, b"")
    assert unpack_from("<H", core.header, 56) == (0xFFFF,)
    (section,) = unpack_from("<Q", core.header, 40)
    assert unpack_from("<I", core.header, section + 44) == (0xFFFF,)
    assert core.size_bytes == core.offsets[-1] + PAGE
