# SPDX-License-Identifier: BSD-3-Clause
"""``crosvm run --dry-run`` beside the run of which it tells."""

from __future__ import annotations

import json
import signal
from typing import TYPE_CHECKING

import pytest

from crosvm_py.exit_status import VmExit
from tests.baremetal.vmm import Vmm, crosvm
from tests.guests.baremetal.build import build_guest
from tests.support.block_driver import is_free

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = [pytest.mark.kvm, pytest.mark.slow]


@pytest.fixture(scope="module")
def echo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_guest("echo", tmp_path_factory.mktemp("dry-run"))


@pytest.fixture
def words(tmp_path: Path, echo: Path) -> list[str]:
    """A run with a device of every kind that needs nothing of the host's kernel."""
    (tmp_path / "disk").write_bytes(bytes(8192))
    (tmp_path / "vsock").mkdir()
    return [
        *("-c", "2", "-m", "16", "--rwdisk", f"{tmp_path}/disk", "--balloon", "0"),
        *("--vsock", f"3,socket={tmp_path}/vsock/v"),
        *("--serial", "type=stdout,stdin,console"),
        *("--serial", f"type=file,path={tmp_path}/port.log,hardware=virtio-console,name=x"),
        *("-s", f"{tmp_path}/vm.sock", str(echo)),
    ]


def test_plan_tells_the_devices_that_the_run_then_has(tmp_path: Path, words: list[str]) -> None:
    planned = crosvm("run", "--dry-run", "--json", *words)
    assert planned.returncode == 0, planned.stderr
    with Vmm(words) as vmm:
        vmm.wait_for(b"echo")
        listed = crosvm("devices", "--json", f"{tmp_path}/vm.sock")
        crosvm("stop", f"{tmp_path}/vm.sock")
        assert vmm.wait() == VmExit.STOPPED
    plan = json.loads(planned.stdout)
    assert [
        (each["name"], each["policy"], each["queues"], each["memory_limit_bytes"] is not None)
        for each in plan["devices"]
    ] == [
        (
            each["name"],
            each["policy"],
            [queue["size"] for queue in each["queues"]],
            each["cgroup"] is not None,
        )
        for each in json.loads(listed.stdout)
    ]
    assert len(plan["devices"]) == 5


def test_rehearsal_leaves_nothing_behind(tmp_path: Path, words: list[str]) -> None:
    before = sorted(tmp_path.rglob("*"))
    planned = crosvm("run", "--dry-run", *words)
    assert planned.returncode == 0, planned.stderr
    assert sorted(tmp_path.rglob("*")) == before
    assert is_free(tmp_path / "disk")
    assert f"{tmp_path}/vm.sock (control)" in " ".join(planned.stdout.split())
    assert "echo" not in planned.stdout.replace("echo.elf", "")


def test_json_without_a_rehearsal_is_refused(words: list[str]) -> None:
    refused = crosvm("run", "--json", *words)
    assert refused.returncode == VmExit.USAGE
    assert refused.stderr == "crosvm: run: --json is for --dry-run\n"


def test_rehearsal_hears_of_its_processes_whatever_signals_are_ignored(words: list[str]) -> None:
    def ignore() -> None:
        signal.signal(signal.SIGCHLD, signal.SIG_IGN)

    with Vmm(words, verb=("run", "--dry-run"), before=ignore) as rehearsal:
        assert rehearsal.wait() == 0, rehearsal.log()
