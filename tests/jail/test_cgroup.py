# SPDX-License-Identifier: BSD-3-Clause
"""The groups of a VM, made and removed in a folder that imitates cgroup v2."""

from __future__ import annotations

import errno
import fcntl
import os
from pathlib import Path
from typing import TYPE_CHECKING, Final

import pytest

from jail.cgroup import Limits, OomCount, VmCgroup, memory_limit, remove_stale
from jail.cgroup_site import CONTROLLERS, CgroupSite
from sys_util.errors import HostError, ProtocolError

if TYPE_CHECKING:
    from collections.abc import Callable

MIB: Final = 1 << 20
LIMITS: Final = Limits(512 * MIB, 1)
FILES: Final = (
    *("cgroup.procs", "cgroup.subtree_control", "cgroup.type", "cgroup.events", "cpu.weight"),
    *("memory.max", "memory.events", "pids.max"),
)


class FakeKernel:
    """Give each new directory control files, and remove them with it, as cgroup v2 does."""

    def __init__(self, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.root = root
        self._mkdir, self._rmdir = os.mkdir, os.rmdir
        self._write = os.write
        self.refused: dict[str, int] = {}  # files that cannot be written, and the errno
        self.written: list[tuple[str, str]] = []
        for name in FILES:
            (root / name).touch()
        monkeypatch.setattr(os, "mkdir", self.mkdir)
        monkeypatch.setattr(os, "rmdir", self.rmdir)
        monkeypatch.setattr(os, "write", self.write)

    def mkdir(self, path: str, mode: int = 0o777) -> None:
        self._mkdir(path, mode)
        for name in FILES:
            (Path(path) / name).touch()

    def rmdir(self, path: str) -> None:
        here = Path(path)
        if not here.is_dir():
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), path)
        if (here / "cgroup.procs").read_text() or any(entry.is_dir() for entry in here.iterdir()):
            raise OSError(errno.EBUSY, os.strerror(errno.EBUSY), path)
        for name in FILES:
            (here / name).unlink()
        self._rmdir(path)

    def write(self, fd: int, data: bytes) -> int:
        file = os.readlink(f"/proc/self/fd/{fd}")
        if not file.startswith(f"{self.root}/"):
            return self._write(fd, data)
        path = os.path.relpath(file, self.root)
        if path in self.refused:
            code = self.refused[path]
            raise OSError(code, os.strerror(code), path)
        self.written.append((path, data.decode()))
        if path.endswith("cgroup.procs"):
            pid = str(os.getpid()) if data == b"0" else data.decode()
            for each in self.root.rglob("cgroup.procs"):
                left = [word for word in each.read_text().split() if word != pid]
                each.write_text("\n".join(left))
            (self.root / path).write_text(pid)
            return len(data)
        if path.endswith("subtree_control"):
            self._control(self.root / path, data.decode().split())
            return len(data)
        return self._write(fd, data)

    def _control(self, file: Path, words: list[str]) -> None:
        enabled = set(file.read_text().split())
        for word in words:
            (enabled.add if word[0] == "+" else enabled.discard)(word[1:])
        file.write_text(" ".join(sorted(enabled)))

    def groups(self) -> list[str]:
        return sorted(str(it.relative_to(self.root)) for it in self.root.rglob("*") if it.is_dir())

    def text(self, path: str) -> str:
        return (self.root / path).read_text()


@pytest.fixture
def kernel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeKernel:
    return FakeKernel(tmp_path, monkeypatch)


def site(
    kernel: FakeKernel, controllers: tuple[str, ...] = CONTROLLERS, *, steps_aside: bool = False
) -> CgroupSite:
    return CgroupSite(str(kernel.root), controllers, steps_aside)


NAME: Final = f"crosvm-{os.getpid()}"


def test_limit_holds_all_of_guest_memory_its_page_tables_and_more() -> None:
    assert memory_limit(0, 64 * MIB, 0) == 64 * MIB
    assert memory_limit(1024 * MIB, 64 * MIB, 10 * MIB) == (1024 + 2 + 64 + 10) * MIB


def test_device_gets_a_group_with_limits_below_that_of_the_vm(kernel: FakeKernel) -> None:
    group = VmCgroup.create(site(kernel), 2)
    os.close(group.device("net:0", Limits(300 * MIB, 17)))
    assert kernel.groups() == [NAME, f"{NAME}/net:0"]
    assert kernel.text("cgroup.subtree_control") == "cpu memory pids"
    assert kernel.text(f"{NAME}/cgroup.subtree_control") == "cpu memory pids"
    assert kernel.text(f"{NAME}/net:0/memory.max") == str(300 * MIB)
    assert kernel.text(f"{NAME}/net:0/pids.max") == "17"
    group.remove()
    assert kernel.groups() == []


def test_device_that_starts_again_gets_its_group_again(kernel: FakeKernel) -> None:
    group = VmCgroup.create(site(kernel), 1)
    for _ in range(2):
        fd = group.device("rng", LIMITS)
        assert os.path.samestat(os.fstat(fd), os.stat(f"{group.path}/rng"))
        os.close(fd)
    group.limit("rng", LIMITS._replace(memory_bytes=5))
    assert kernel.text(f"{NAME}/rng/memory.max").startswith("5")
    group.remove()


@pytest.mark.parametrize("name", ["..", "../x", "a/b", ".", "/"])
def test_device_cannot_be_elsewhere(kernel: FakeKernel, name: str) -> None:
    group = VmCgroup.create(site(kernel), 1)
    with pytest.raises(ProtocolError, match="is no name of a device"):
        group.device(name, LIMITS)
    assert kernel.groups() == [NAME]
    group.remove()


def test_only_controllers_that_are_there_are_used(kernel: FakeKernel) -> None:
    group = VmCgroup.create(site(kernel, controllers=("pids",)), 1)
    os.close(group.device("rng", LIMITS))
    assert [path for path, _ in kernel.written] == [
        "cgroup.subtree_control",
        f"{NAME}/cgroup.subtree_control",
        f"{NAME}/rng/pids.max",
    ]
    group.remove()


def test_vmm_steps_aside_and_everybody_back(kernel: FakeKernel) -> None:
    (kernel.root / "cgroup.procs").write_text(str(os.getpid()))
    group = VmCgroup.create(site(kernel, steps_aside=True), 3)
    assert kernel.text(f"{NAME}.vmm/cgroup.procs") == str(os.getpid())
    assert kernel.text(f"{NAME}.vmm/cpu.weight") == "300"
    assert kernel.written[:2] == [
        (f"{NAME}.vmm/cgroup.procs", "0"),
        ("cgroup.subtree_control", "+cpu +memory +pids"),
    ]
    group.remove()
    assert kernel.groups() == []
    assert kernel.text("cgroup.procs") == str(os.getpid())
    assert kernel.text("cgroup.subtree_control") == ""


def test_weight_of_many_vcpus_stays_a_weight(kernel: FakeKernel) -> None:
    group = VmCgroup.create(site(kernel, steps_aside=True), 254)
    assert kernel.text(f"{NAME}.vmm/cpu.weight") == "10000"
    group.remove()


def test_process_that_ended_meanwhile_is_no_matter(kernel: FakeKernel) -> None:
    group = VmCgroup.create(site(kernel, steps_aside=True), 1)
    (kernel.root / f"{NAME}.vmm/cgroup.procs").write_text("")
    kernel.refused["cgroup.procs"] = errno.ESRCH
    group.remove()
    assert kernel.groups() == []


@pytest.mark.parametrize(
    ("path", "code"),
    [
        pytest.param("cgroup.subtree_control", errno.EBUSY, id="another-came"),
        pytest.param(f"{NAME}.vmm/cgroup.procs", errno.EACCES, id="step-aside"),
        pytest.param(f"{NAME}/cgroup.subtree_control", errno.ENOTSUP, id="threaded"),
    ],
)
def test_refusal_leaves_nothing_behind(kernel: FakeKernel, path: str, code: int) -> None:
    kernel.refused[path] = code
    with pytest.raises(HostError, match=rf"make the cgroup .*{NAME}$"):
        VmCgroup.create(site(kernel, steps_aside=True), 1)
    assert kernel.groups() == []


def test_refused_device_is_a_host_error(kernel: FakeKernel) -> None:
    group = VmCgroup.create(site(kernel), 1)
    kernel.refused[f"{NAME}/rng/memory.max"] = errno.EINVAL
    with pytest.raises(HostError, match=r"make the cgroup .*/rng$"):
        group.device("rng", LIMITS)
    group.remove()
    assert kernel.groups() == []


def abandon(kernel: FakeKernel, name: str, *devices: str) -> str:
    path = str(kernel.root / name)
    for each in (path, *(f"{path}/{device}" for device in devices)):
        kernel.mkdir(each)
    return path


def test_groups_of_killed_vms_are_removed_by_the_next(kernel: FakeKernel) -> None:
    abandon(kernel, "crosvm-1", "rng", "block:0")
    abandon(kernel, "crosvm-2.vmm")
    abandon(kernel, "other", "rng")
    group = VmCgroup.create(site(kernel), 1)
    assert kernel.groups() == [NAME, "other", "other/rng"]
    group.remove()


def test_groups_of_living_vms_stay(kernel: FakeKernel) -> None:
    used = os.open(abandon(kernel, "crosvm-1", "rng"), os.O_RDONLY | os.O_DIRECTORY)
    fcntl.flock(used, fcntl.LOCK_SH)
    abandon(kernel, "crosvm-1.vmm")
    remove_stale(str(kernel.root))
    assert kernel.groups() == ["crosvm-1", "crosvm-1.vmm", "crosvm-1/rng"]
    os.close(used)
    remove_stale(str(kernel.root))
    remove_stale(str(kernel.root))  # removes crosvm-1.vmm, now that crosvm-1 is gone
    assert kernel.groups() == []


def test_groups_of_others_stay_whatever_they_are_called(kernel: FakeKernel) -> None:
    names = ["crosvm-", "crosvm-web.service", "crosvm-1.slice", "crosvm--1", "xcrosvm-1"]
    for name in names:
        abandon(kernel, name, "rng")
    remove_stale(str(kernel.root))
    assert kernel.groups() == sorted([*names, *(f"{name}/rng" for name in names)])


def test_groups_stay_while_their_last_processes_end(kernel: FakeKernel) -> None:
    path = Path(abandon(kernel, "crosvm-1", "rng"))
    (path / "cgroup.events").write_text("populated 1\nfrozen 0\n")
    remove_stale(str(kernel.root))
    assert kernel.groups() == ["crosvm-1", "crosvm-1/rng"]
    (path / "cgroup.events").write_text("populated 0\nfrozen 0\n")
    remove_stale(str(kernel.root))
    assert kernel.groups() == []


def test_group_is_in_use_until_the_last_process_has_let_go(kernel: FakeKernel) -> None:
    group = VmCgroup.create(site(kernel), 1)
    of_warden = os.dup(group.lock_fd)
    group.let_go()
    remove_stale(str(kernel.root))
    assert kernel.groups() == [NAME]
    os.close(of_warden)
    remove_stale(str(kernel.root))
    assert kernel.groups() == []


def interfere(kernel: FakeKernel, monkeypatch: pytest.MonkeyPatch, times: int) -> None:
    """Act as another VM, which removes our group between our mkdir and our flock."""
    left = [times]
    mkdir: Callable[[str, int], None] = kernel.mkdir

    def mkdir_and_lose(path: str, mode: int) -> None:
        mkdir(path, mode)
        if path.endswith(NAME) and left[0]:
            left[0] -= 1
            remove_stale(str(kernel.root))

    monkeypatch.setattr(os, "mkdir", mkdir_and_lose)


def test_group_that_was_taken_for_dead_is_made_again(
    kernel: FakeKernel, monkeypatch: pytest.MonkeyPatch
) -> None:
    interfere(kernel, monkeypatch, 2)
    group = VmCgroup.create(site(kernel), 1)
    assert kernel.groups() == [NAME]
    group.remove()


def test_group_that_is_always_taken_for_dead_is_given_up(
    kernel: FakeKernel, monkeypatch: pytest.MonkeyPatch
) -> None:
    interfere(kernel, monkeypatch, 9)
    with pytest.raises(HostError, match="make the cgroup"):
        VmCgroup.create(site(kernel), 1)


@pytest.mark.parametrize(
    ("text", "count"),
    [
        pytest.param(
            "low 0\nhigh 0\nmax 7\noom 2\noom_kill 1\noom_group_kill 0\n", (2, 1), id="v2"
        ),
        pytest.param("low 0\n", (0, 0), id="old"),
        pytest.param("", (0, 0), id="empty"),
    ],
)
def test_oom_count_is_read_from_the_events(
    kernel: FakeKernel, text: str, count: tuple[int, int]
) -> None:
    group = VmCgroup.create(site(kernel), 1)
    assert group.oom_count("rng") == OomCount(0, 0)
    os.close(group.device("rng", LIMITS))
    (kernel.root / NAME / "rng/memory.events").write_text(text)
    assert group.oom_count("rng") == OomCount(*count)
    group.remove()
