# SPDX-License-Identifier: BSD-3-Clause
"""The cgroups of a run: whether it has any, their limits, and which process hit a limit."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Final, cast

import pytest

from crosvm_py.kinds import cgroup
from crosvm_py.kinds.cgroup import DeviceLimits, make_vm_cgroup, memory_of_file
from crosvm_py.kinds.table import DEVICE_KINDS
from jail.cgroup import Limits, OomCount, VmCgroup
from jail.cgroup_site import CgroupSite, NoCgroupError
from sys_util import log
from sys_util.errors import ConfigError, HostError

if TYPE_CHECKING:
    from collections.abc import Iterator

MIB: Final = 1 << 20
SITE: Final = CgroupSite("/cg", ("memory",))


class FakeGroup:
    """The group of a VM, whose counters the test sets."""

    def __init__(self) -> None:
        self.set: list[tuple[str, Limits]] = []
        self.count = OomCount(0, 0)

    def device(self, name: str, limits: Limits) -> int:
        self.limit(name, limits)
        return 7

    def limit(self, name: str, limits: Limits) -> None:
        self.set.append((name, limits))

    def oom_count(self, _name: str) -> OomCount:
        return self.count


@pytest.fixture
def group() -> FakeGroup:
    return FakeGroup()


def limits_of(group: FakeGroup, kind: str, guest_mib: int = 512) -> DeviceLimits:
    fake = cast("VmCgroup", group)
    return DeviceLimits(fake, f"{kind}:0", DEVICE_KINDS[kind], guest_mib * MIB)


@pytest.mark.parametrize("kind", sorted(DEVICE_KINDS))
def test_every_device_may_touch_all_of_guest_memory_first(group: FakeGroup, kind: str) -> None:
    limits = limits_of(group, kind)
    assert limits.enter(0) == 7
    ((name, (memory_bytes, processes)),) = group.set
    assert name == f"{kind}:0"
    assert memory_bytes == (512 + 1) * MIB + DEVICE_KINDS[kind].max_memory_bytes
    own = max(1, DEVICE_KINDS[kind].max_processes) + DEVICE_KINDS[kind].threads
    # The broker counts too, and a restarted device may have two old ones not yet reaped.
    assert processes == (2 * (own + 1) if DEVICE_KINDS[kind].broker else own)


def test_limit_grows_with_a_file_in_memory(group: FakeGroup) -> None:
    limits = limits_of(group, "block")
    limits.enter(10 * MIB)
    limits.change(30 * MIB)
    (_, small), (_, large) = group.set
    assert large.memory_bytes - small.memory_bytes == 20 * MIB


@pytest.mark.parametrize(
    ("before", "after", "cause"),
    [
        pytest.param((0, 0), (0, 0), "", id="nothing"),
        pytest.param((3, 1), (3, 1), "", id="only-the-one-before"),
        pytest.param((0, 0), (2, 0), "", id="limit-hit-and-lived"),
        pytest.param((0, 0), (2, 1), "over its memory limit of 833 MiB", id="own-limit"),
        pytest.param((3, 1), (4, 2), "over its memory limit of 833 MiB", id="again"),
        pytest.param((3, 1), (3, 2), "the host ran out of memory", id="host"),
    ],
)
def test_cause_of_death_is_what_happened_since_the_start(
    group: FakeGroup, before: tuple[int, int], after: tuple[int, int], cause: str
) -> None:
    limits = limits_of(group, "rng")
    group.count = OomCount(*before)
    limits.enter(0)
    group.count = OomCount(*after)
    assert limits.cause_of_death() == cause


def test_without_a_group_there_is_nothing_to_enter_and_nothing_known() -> None:
    limits = DeviceLimits(None, "rng", DEVICE_KINDS["rng"], MIB)
    assert limits.enter(0) == -1
    limits.change(MIB)
    assert limits.cause_of_death() == ""


@pytest.mark.parametrize(
    ("mode", "device", "rdev", "counts"),
    [
        pytest.param(stat.S_IFREG, (8, 1), (0, 0), False, id="disk"),
        pytest.param(stat.S_IFREG, (0, 42), (0, 0), True, id="tmpfs"),
        pytest.param(stat.S_IFBLK, (0, 5), (8, 1), False, id="partition"),
        pytest.param(stat.S_IFBLK, (0, 5), (7, 3), True, id="loop"),
    ],
)
def test_file_counts_where_its_pages_may_be_all_there_is(
    monkeypatch: pytest.MonkeyPatch,
    mode: int,
    device: tuple[int, int],
    rdev: tuple[int, int],
    counts: bool,
) -> None:
    status = SimpleNamespace(st_mode=mode, st_dev=os.makedev(*device), st_rdev=os.makedev(*rdev))
    with monkeypatch.context() as patch:
        patch.setattr(os, "fstat", lambda _fd: status)
        counted = memory_of_file(3, 5 * MIB)
    assert counted == (5 * MIB if counts else 0)


def test_memfd_counts() -> None:
    fd = os.memfd_create("disk")
    assert memory_of_file(fd, MIB) == MIB
    os.close(fd)


@pytest.fixture
def lines() -> Iterator[list[str]]:
    found: list[str] = []
    log.set_filter(log.Filter(log.DEBUG))
    log.set_sink(lambda _level, _module, line: found.append(line))
    yield found
    log.set_sink(log.stderr_sink)
    log.set_filter(log.Filter(log.INFO))


def refuse_site(path: str | None) -> CgroupSite:
    raise NoCgroupError(f"{path} has other processes", "do this")


def refuse_group(_site: CgroupSite, _cpus: int) -> VmCgroup:
    raise HostError("make", "the cgroup /cg/x") from PermissionError(1, "Operation not permitted")


@pytest.mark.parametrize(
    ("function", "reason"),
    [
        pytest.param("find_site", r"has other processes \(do this\)", id="site"),
        pytest.param("create", "make the cgroup /cg/x: Operation not permitted", id="group"),
    ],
)
def test_refusal_matters_only_to_who_asked(
    monkeypatch: pytest.MonkeyPatch, lines: list[str], function: str, reason: str
) -> None:
    monkeypatch.setattr(cgroup, "find_site", lambda _path: SITE)
    if function == "find_site":
        monkeypatch.setattr(cgroup, "find_site", refuse_site)
    monkeypatch.setattr(VmCgroup, "create", refuse_group)
    assert make_vm_cgroup(None, 2, sandbox=True) is None
    (line,) = lines
    assert line.startswith("devices have resource limits alone: ")
    with pytest.raises(ConfigError, match=f"^--cgroup /cg: .*{reason}"):
        make_vm_cgroup("/cg", 2, sandbox=True)


def test_path_and_vcpus_are_passed_on(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[object] = []

    def find_site(path: str | None) -> CgroupSite:
        asked.append(path)
        return SITE

    monkeypatch.setattr(cgroup, "find_site", find_site)
    monkeypatch.setattr(VmCgroup, "create", lambda site, cpus: asked.extend((site, cpus)))
    make_vm_cgroup("/cg", 3, sandbox=True)
    assert asked == ["/cg", SITE, 3]


@pytest.mark.parametrize(
    ("choice", "sandbox"),
    [
        pytest.param("none", True, id="none"),
        pytest.param("none", False, id="none-unconfined"),
        pytest.param(None, False, id="unconfined"),
    ],
)
def test_there_may_be_no_group(
    monkeypatch: pytest.MonkeyPatch, choice: str | None, sandbox: bool
) -> None:
    monkeypatch.setattr(cgroup, "find_site", refuse_site)
    assert make_vm_cgroup(choice, 1, sandbox=sandbox) is None


def test_group_without_a_sandbox_is_refused() -> None:
    with pytest.raises(ConfigError, match="without a sandbox devices have no limits"):
        make_vm_cgroup("/cg", 1, sandbox=False)


def test_host_without_cgroups_still_runs_devices(tmp_path: Path, lines: list[str]) -> None:
    with pytest.raises(ConfigError, match=f"--cgroup {tmp_path}: "):
        make_vm_cgroup(str(tmp_path), 1, sandbox=True)
    assert lines == []
