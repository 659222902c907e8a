# SPDX-License-Identifier: BSD-3-Clause
"""Where groups for devices can be made: every answer, with folders that imitate cgroup v2."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple

import pytest

from jail.cgroup_site import CgroupSite, NoCgroupError, find_site

if TYPE_CHECKING:
    from collections.abc import Sequence

ALL: Final = ("cpu", "memory", "pids")
V1: Final = "4:memory:/user\n1:cpu:/\n"
OTHER_MOUNTS: Final = """\
22 1 8:1 / / rw - ext4 /dev/sda1 rw
31 22 0:28 / {root}/v1 rw shared:9 - cgroup cgroup rw,cpu
"""


class Tree(NamedTuple):
    """Something like /proc and /sys/fs/cgroup, in which this process is in the group ``own``."""

    proc: Path
    mount: Path

    def find(self, path: Path | None = None) -> CgroupSite:
        return find_site(None if path is None else str(path), proc=str(self.proc))

    def group(
        self,
        name: str,
        *,
        controllers: Sequence[str] = ALL,
        processes: Sequence[int] = (),
        kind: str = "domain",
    ) -> Path:
        path = self.mount / name
        path.mkdir(parents=True, exist_ok=True)
        (path / "cgroup.controllers").write_text(" ".join(["cpuset", *controllers]) + "\n")
        (path / "cgroup.procs").write_text("".join(f"{pid}\n" for pid in processes))
        (path / "cgroup.subtree_control").touch()
        if name:
            (path / "cgroup.type").write_text(f"{kind}\n")
        return path


def make_tree(folder: Path, own: str, *, shown: str = "/", point: str = "v2") -> Tree:
    tree = Tree(folder / "proc", folder / point)
    (tree.proc / "self").mkdir(parents=True)
    (tree.proc / "self/cgroup").write_text(f"{V1}0::{own}\n")
    escaped = str(tree.mount).replace("\\", "\\134").replace(" ", "\\040")
    (tree.proc / "self/mountinfo").write_text(
        OTHER_MOUNTS.format(root=folder)
        + f"41 22 0:38 {shown} {escaped} rw,nosuid shared:2 - cgroup2 cgroup2 rw\n"
    )
    tree.group("", processes=[1, 2])
    return tree


@pytest.fixture
def tree(tmp_path: Path) -> Tree:
    return make_tree(tmp_path, "/user.slice/a.scope")


def test_root_may_have_processes_of_its_own(tmp_path: Path) -> None:
    tree = make_tree(tmp_path, "/")
    assert tree.find() == CgroupSite(str(tree.mount), ALL)


def test_group_with_nobody_else_is_left_first(tree: Tree) -> None:
    own = tree.group("user.slice/a.scope", processes=[os.getpid()])
    tree.group("user.slice")
    assert tree.find() == CgroupSite(str(own), ALL, steps_aside=True)


def test_group_at_a_path_is_taken_as_it_is(tree: Tree) -> None:
    tree.group("user.slice/a.scope", processes=[os.getpid(), 1])
    given = tree.group("vms")
    assert tree.find(given) == CgroupSite(str(given), ALL)
    link = tree.proc / "link"
    link.symlink_to(given)
    assert tree.find(link).path == str(given)


def test_controllers_that_are_there_are_used(tree: Tree) -> None:
    own = tree.group("user.slice/a.scope", processes=[os.getpid()], controllers=["memory", "io"])
    assert tree.find() == CgroupSite(str(own), ("memory",), steps_aside=True)


def test_mount_may_show_a_part_of_the_tree(tmp_path: Path) -> None:
    tree = make_tree(tmp_path, "/box/vms", shown="/box", point="a b\\c")
    assert r"a\040b\134c" in (tree.proc / "self/mountinfo").read_text()
    own = tree.group("vms", processes=[os.getpid()])
    assert tree.find().path == str(own)


def test_group_above_counts_if_systemd_gave_it_away(
    tree: Tree, monkeypatch: pytest.MonkeyPatch
) -> None:
    tree.group("user.slice/a.scope", processes=[os.getpid(), 1])
    above = tree.group("user.slice")
    with pytest.raises(NoCgroupError, match=r"a\.scope has other processes"):
        tree.find()
    monkeypatch.setattr(os, "getxattr", lambda path, name: b"1" if path == str(above) else b"")
    assert tree.find() == CgroupSite(str(above), ALL)


@pytest.mark.parametrize(
    ("group", "reason"),
    [
        pytest.param({"processes": [1]}, "has other processes", id="shell"),
        pytest.param({"processes": [os.getpid(), 1]}, "has other processes", id="both"),
        pytest.param({"processes": [0]}, "has other processes", id="other-pid-namespace"),
        pytest.param({"controllers": []}, "none of the controllers cpu, memory", id="controllers"),
        pytest.param({"controllers": ["io"]}, "none of the controllers", id="io-only"),
        pytest.param({"kind": "threaded"}, "is a threaded group", id="threaded"),
        pytest.param({"kind": "domain invalid"}, "is a domain invalid group", id="invalid"),
    ],
)
def test_group_that_cannot_be_used_is_named(
    tree: Tree, group: dict[str, object], reason: str
) -> None:
    path = tree.group("user.slice/a.scope", **group)  # type: ignore[arg-type]  # by the table
    with pytest.raises(NoCgroupError, match=reason) as caught:
        tree.find()
    assert str(path) in str(caught.value)
    assert "-p Delegate=yes" in caught.value.hint


@pytest.mark.parametrize("denied", ["", "/cgroup.procs", "/cgroup.subtree_control", "above"])
def test_group_of_somebody_else_is_named(
    tree: Tree, monkeypatch: pytest.MonkeyPatch, denied: str
) -> None:
    tree.group("user.slice/a.scope", processes=[os.getpid(), 1])
    given = tree.group("user.slice/vms")
    above = tree.group("user.slice")
    refused = f"{above}/cgroup.procs" if denied == "above" else f"{given}{denied}"
    monkeypatch.setattr(os, "access", lambda path, _mode, **_: path != refused)
    with pytest.raises(NoCgroupError, match=f"^{refused} is not ours to write"):
        tree.find(given)


def test_path_elsewhere_is_no_group(tree: Tree, tmp_path: Path) -> None:
    with pytest.raises(NoCgroupError, match="nothing is no group of cgroup v2"):
        tree.find(tmp_path / "nothing")


@pytest.mark.parametrize(
    ("file", "text", "reason"),
    [
        pytest.param("cgroup", V1, "this host has no cgroup v2", id="v1"),
        pytest.param("cgroup", "", "this host has no cgroup v2", id="empty"),
        pytest.param("cgroup", "0::/../x\n", "v2 is not mounted", id="not-mounted"),
        pytest.param("mountinfo", "nonsense\n - cgroup2\n", "v2 is not mounted", id="nonsense"),
    ],
)
def test_host_without_cgroup_v2_is_named(tree: Tree, file: str, text: str, reason: str) -> None:
    if reason.endswith("mounted"):
        (tree.proc / "self/mountinfo").write_text(OTHER_MOUNTS.format(root="/x"))
    (tree.proc / "self" / file).write_text(text)
    with pytest.raises(NoCgroupError, match=reason) as caught:
        tree.find()
    assert caught.value.hint == "boot with systemd.unified_cgroup_hierarchy=1"


def test_group_outside_of_every_mount_is_named(tmp_path: Path) -> None:
    tree = make_tree(tmp_path, "/boxes", shown="/box")
    with pytest.raises(NoCgroupError, match="no mount of cgroup v2 shows our own group, /boxes"):
        tree.find()


def test_proc_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(NoCgroupError, match=r"cannot read .*/self/cgroup: No such file"):
        find_site(proc=str(tmp_path))


def test_hybrid_mount_without_controllers_is_named(tmp_path: Path) -> None:
    tree = make_tree(tmp_path, "/")
    tree.group("", controllers=[])
    with pytest.raises(NoCgroupError, match="none of the controllers") as caught:
        tree.find()
    assert caught.value.hint == "boot with systemd.unified_cgroup_hierarchy=1"


def test_hint_for_an_ordinary_user_is_their_own_systemd(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert NoCgroupError("x").hint.startswith("systemd-run --user --scope")
