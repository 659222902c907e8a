# SPDX-License-Identifier: BSD-3-Clause
"""The doctor: what it concludes, and that a broken host is a finding and not a traceback."""

from __future__ import annotations

import errno
import json
import os
from typing import TYPE_CHECKING

import pytest

from crosvm_py.doctor import (
    Finding,
    Status,
    as_json,
    as_text,
    can_run,
    checks,
    diagnose,
    guest,
    sandbox,
)
from crosvm_py.doctor.report import GUEST, VIRTUALIZATION
from crosvm_py.doctor.sandbox import try_jail
from jail.cgroup_site import CgroupSite, NoCgroupError
from jail.namespaces import clone_into
from kernel_loader.parse import parse_kernel
from kernel_loader.source import FileSource
from kvm.vm import Kvm
from sys_util.errors import HostError

if TYPE_CHECKING:
    from pathlib import Path

OK = Finding("kvm", Status.OK, "usable")
PROBLEM = Finding("kvm", Status.PROBLEM, "open /dev/kvm: denied", "join the group kvm")
NO_TUN = Finding("tun", Status.WARNING, "/dev/net/tun: denied")
EMULATED = Finding(VIRTUALIZATION, Status.WARNING, "none")


def _raising(error: Exception) -> list[tuple[str, object]]:
    def check(_name: str) -> list[Finding]:
        raise error

    return [("thing", check)]


@pytest.mark.parametrize(
    ("findings", "verdict", "runs"),
    [
        pytest.param([OK, NO_TUN], "guests can run here", True, id="warning"),
        pytest.param([OK, EMULATED], "bare-metal guests can run here", True, id="emulated"),
        pytest.param([OK, PROBLEM], "guests cannot run here", False, id="problem"),
    ],
)
def test_report_verdict_follows_the_worst_finding(
    findings: list[Finding], verdict: str, runs: bool
) -> None:
    assert can_run(findings) is runs
    assert as_text(findings).splitlines()[-1].startswith(verdict)
    assert json.loads(as_json(findings))["can_run"] is runs


def test_report_text_has_a_line_for_each_finding_with_its_advice() -> None:
    line = as_text([PROBLEM, NO_TUN]).splitlines()[0]
    assert line == "problem  kvm  open /dev/kvm: denied; join the group kvm"


def test_report_json_has_every_field() -> None:
    answer = json.loads(as_json([PROBLEM, EMULATED]))
    assert answer["can_boot_stock_kernels"] is False
    assert answer["checks"][0] == {
        "name": "kvm",
        "status": "problem",
        "detail": "open /dev/kvm: denied",
        "advice": "join the group kvm",
    }


@pytest.mark.parametrize(
    ("error", "detail"),
    [
        pytest.param(HostError("open", "/dev/kvm", "hint"), "open /dev/kvm", id="host"),
        pytest.param(PermissionError(13, "Permission denied"), "Permission denied", id="os"),
        pytest.param(ImportError("no module _kvm"), "no module _kvm", id="import"),
    ],
)
def test_diagnose_check_that_fails_is_a_problem(
    monkeypatch: pytest.MonkeyPatch, error: Exception, detail: str
) -> None:
    monkeypatch.setattr(checks, "CHECKS", _raising(error))
    (finding,) = diagnose()
    assert finding.status is Status.PROBLEM
    assert detail in finding.detail


def test_diagnose_missing_kvm_names_the_device_and_the_fix(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    real = Kvm.open
    monkeypatch.setattr(Kvm, "open", lambda: real("/nonexistent/kvm"))
    finding = next(each for each in diagnose() if each.name == "kvm")
    assert finding.detail == "open /nonexistent/kvm: No such file or directory"
    assert "load the module kvm_intel or kvm_amd" in finding.advice


def test_diagnose_missing_library_names_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checks, "LIBRARIES", (("zstandard", "no_such_module"),))
    finding = next(each for each in diagnose() if each.name == "zstandard")
    assert finding == Finding(
        "zstandard", Status.PROBLEM, "No module named 'no_such_module'", "pip install zstandard"
    )


def test_diagnose_library_without_metadata_is_no_problem(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checks, "LIBRARIES", (("no-such-distribution", "json"),))
    finding = next(each for each in diagnose() if each.name == "no-such-distribution")
    assert finding == Finding(
        "no-such-distribution", Status.OK, "there, of a version that is not told"
    )


def test_guest_image_is_what_the_loader_takes(tmp_path: Path) -> None:
    path = tmp_path / "guest.elf"
    path.write_bytes(guest.guest_image())
    source = FileSource.open("kernel", str(path))
    kernel = parse_kernel(source, -1)
    source.close()
    assert kernel.protocol == "linux64"
    assert [segment.size_bytes for segment in kernel.segments] == [len(guest.guest_image())]


@pytest.mark.kvm
@pytest.mark.root
def test_guest_that_does_not_run_is_a_problem(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checks, "CHECKS", ())  # another problem would be enough
    monkeypatch.setattr(guest, "guest_image", lambda: b"no kernel")
    finding = next(each for each in diagnose() if each.name == GUEST)
    assert finding.status is Status.PROBLEM
    assert finding.detail.startswith("run a guest: kernel /proc/self/fd/")


def test_guest_is_not_tried_where_another_check_says_no(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checks, "CHECKS", _raising(OSError("no")))
    assert [finding.name for finding in diagnose()] == ["thing"]


def test_diagnose_old_python_is_a_problem(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checks, "MIN_PYTHON", (9, 9))
    finding = next(each for each in diagnose() if each.name == "python")
    assert finding.status is Status.PROBLEM
    assert finding.advice == "install Python 9.9 or later"


def test_diagnose_looks_at_everything_once() -> None:
    names = [finding.name for finding in diagnose()]
    assert {"kvm", VIRTUALIZATION, "sandbox", "seccomp", "tun", "huge pages"} <= set(names)
    assert len(names) == len(set(names))


@pytest.mark.parametrize(
    ("site", "status", "detail", "advice"),
    [
        pytest.param(
            CgroupSite("/cg/vms", ("cpu", "memory", "pids")),
            Status.OK,
            "devices get groups of their own below /cg/vms",
            "",
            id="usable",
        ),
        pytest.param(
            CgroupSite("/cg/vms", ("memory",)),
            Status.WARNING,
            "/cg/vms is without cpu, pids",
            "have its parent delegate them",
            id="partly",
        ),
        pytest.param(
            NoCgroupError("/cg has other processes", "start a scope"),
            Status.WARNING,
            "/cg has other processes: devices have resource limits alone",
            "start a scope",
            id="not",
        ),
    ],
)
def test_diagnose_says_what_limits_the_devices(
    monkeypatch: pytest.MonkeyPatch,
    site: CgroupSite | NoCgroupError,
    status: Status,
    detail: str,
    advice: str,
) -> None:
    def find_site() -> CgroupSite:
        if isinstance(site, NoCgroupError):
            raise site
        return site

    monkeypatch.setattr("jail.cgroup_site.find_site", find_site)
    finding = next(each for each in diagnose() if each.name == "cgroup")
    assert finding == Finding("cgroup", status, detail, advice)


@pytest.fixture
def children(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    pids: list[int] = []

    def clone_and_note() -> int:
        pids.append(clone_into())
        return pids[-1]

    monkeypatch.setattr(sandbox, "clone_into", clone_and_note)
    return pids


@pytest.mark.root
def test_try_jail_leaves_no_process_and_no_descriptor(children: list[int]) -> None:
    before = os.listdir("/proc/self/fd")
    try_jail()
    assert os.listdir("/proc/self/fd") == before
    assert not os.path.exists(f"/proc/{children[0]}")


@pytest.mark.root
def test_try_jail_refused_step_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_args: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr("sys_util.linux.pivot_root", refuse)
    with pytest.raises(HostError, match=r"pivot into an empty, read-only root.*not permitted"):
        try_jail()


@pytest.mark.root
def test_try_jail_refused_id_map_ends_the_child(
    children: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_args: object) -> None:
        raise HostError("write", "/proc/1/uid_map")

    monkeypatch.setattr(sandbox, "write_id_maps", refuse)
    with pytest.raises(HostError, match="write /proc/1/uid_map"):
        try_jail()
    assert not os.path.exists(f"/proc/{children[0]}")


@pytest.mark.parametrize(
    ("version", "status", "detail"),
    [(0, Status.WARNING, "none"), (7, Status.OK, "version 7 of its ABI")],
)
def test_landlock_is_told_as_the_kernel_has_it(
    monkeypatch: pytest.MonkeyPatch, version: int, status: Status, detail: str
) -> None:
    monkeypatch.setattr("sys_util.landlock.abi_version", lambda: version)
    (finding,) = dict(checks.CHECKS)["landlock"]("landlock")
    assert (finding.status, finding.detail) == (status, detail)


@pytest.mark.parametrize(
    ("refusal", "status", "detail"),
    [
        (None, Status.OK, "vCPUs share no core"),
        (OSError(errno.ENODEV, "no"), Status.OK, "not needed"),
        (OSError(errno.EINVAL, "Invalid"), Status.WARNING, "Invalid: other programs"),
    ],
    ids=["offered", "no-smt", "old-kernel"],
)
def test_core_scheduling_is_told_as_the_host_has_it(
    monkeypatch: pytest.MonkeyPatch, refusal: OSError | None, status: Status, detail: str
) -> None:
    monkeypatch.setattr("crosvm_py.machine.core_scheduling.find_refusal", lambda: refusal)
    (finding,) = dict(checks.CHECKS)["core scheduling"]("core scheduling")
    assert finding.status == status
    assert detail in finding.detail
