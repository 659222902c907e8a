# SPDX-License-Identifier: BSD-3-Clause
"""``crosvm top`` and ``crosvm info`` with VMs that answer, end meanwhile, or were never there."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from crosvm_py.cli.commands import info, top
from crosvm_py.cli.dispatch import execute
from crosvm_py.control.socket_client import ControlError
from sys_util.errors import HostError, UsageError
from tests.crosvm_py.cli.watch.test_report import a_look

if TYPE_CHECKING:
    from collections.abc import Callable

    from crosvm_py.cli.watch.look import Look

GONE = HostError("connect to", "vm.sock", "the VM that made it is gone")


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Return what says how VMs answer, one after the other; the last answer stays."""

    def tell(**answers: list[Look | Exception]) -> None:
        def look_at(path: str, _timeout: float) -> Look:
            left = answers[path]
            answer = left.pop(0) if len(left) > 1 else left[0]
            if isinstance(answer, Exception):
                raise answer
            return answer

        monkeypatch.setattr(top, "look_at", look_at)
        monkeypatch.setattr(info, "look_at", look_at)

    return tell


FAST = ("top", "-d", "0.1")


def test_top_once_has_rates(told: Callable[..., None], capfd: pytest.CaptureFixture[str]) -> None:
    told(vm=[a_look(), a_look(1.0, 3)])
    assert execute([*FAST, "--once", "vm"]) == 0
    lines = capfd.readouterr().out.splitlines()
    assert lines[0].startswith("work (vm.sock): running")
    assert lines[3].split()[-1] == "3.0K"


def test_top_goes_on_while_one_vm_is_left_and_ends_with_the_last(
    told: Callable[..., None], capfd: pytest.CaptureFixture[str]
) -> None:
    told(
        a=[a_look(), a_look(1.0, 1), GONE],
        b=[a_look(), a_look(1.0, 1), a_look(2.0, 2), ControlError("b: no answer"), GONE],
    )
    assert execute([*FAST, "--json", "a", "b"]) == 0
    found = [json.loads(line) for line in capfd.readouterr().out.splitlines()]
    assert [["error" in vm for vm in vms] for vms in found] == [
        [False, False],
        [True, False],
        [True, True],
        [True, True],
    ]


def test_top_of_no_vm_at_all_says_why(
    told: Callable[..., None], capfd: pytest.CaptureFixture[str]
) -> None:
    told(vm=[GONE])
    assert execute([*FAST, "vm"]) == 1
    assert "connect to vm.sock" in capfd.readouterr().err


@pytest.mark.parametrize("text", ["0", "nan", "x", "-1", "1e9"])
def test_top_refuses_a_delay_without_sense(text: str) -> None:
    with pytest.raises(UsageError, match="--delay"):
        execute(["top", "--delay", text, "vm"])


def test_info_prints_processes_and_devices(
    told: Callable[..., None], capfd: pytest.CaptureFixture[str]
) -> None:
    told(vm=[a_look()])
    assert execute(["info", "vm"]) == 0
    out = capfd.readouterr().out
    assert "  vcpu0: thread 41, processor time 0.0 s, 0 exits to the vmm" in out
    assert "  work: process 40" in out
    assert "block_device" in out


def test_info_as_json(told: Callable[..., None], capfd: pytest.CaptureFixture[str]) -> None:
    told(vm=[a_look()])
    assert execute(["info", "--json", "vm"]) == 0
    assert json.loads(capfd.readouterr().out)["pid"] == 40
