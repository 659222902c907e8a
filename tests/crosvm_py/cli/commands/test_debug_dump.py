# SPDX-License-Identifier: BSD-3-Clause
"""``crosvm debug dump`` without a VM: what is asked, and how the answers look."""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING

import pytest

from crosvm_py.cli.commands import debug_dump
from crosvm_py.cli.commands.debug_dump import Task, as_lines, read_task
from crosvm_py.cli.dispatch import execute
from crosvm_py.control import socket_client as client
from crosvm_py.requests.debug import DumpDevice, DumpVm, VcpuPlace, VmDump
from crosvm_py.requests.devices import DeviceInfo, DeviceList, ListDevices
from tests.crosvm_py.cli.commands.test_debug_verdicts import IDLE, POSITION, TRANSPORT, changed

if TYPE_CHECKING:
    from crosvm_py.requests.protocol import Request, Response

VM = VmDump(40, (VcpuPlace(0, 42, "guest", ""), VcpuPlace(1, 43, "exit", "write (bus.py:7)")))
LIST = DeviceList((DeviceInfo(0, "block:0", 41, "active", "block_device", (), ()),))


def nothing_known(_pid: int, _thread_id: int) -> Task | None:
    return None


@pytest.fixture
def written(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    def ask(_path: str, request: Request) -> Response:
        match request:
            case DumpVm():
                return VM
            case ListDevices():
                return LIST
            case DumpDevice(device="block:0"):
                return IDLE
        raise AssertionError(request)

    written: list[str] = []
    monkeypatch.setattr(client, "ask", ask)
    monkeypatch.setattr(debug_dump, "write_out", written.append)
    return written


def test_text_names_every_vcpu_and_queue(written: list[str]) -> None:
    assert execute(["debug", "dump", "vm.sock"]) == 0
    (text,) = written
    assert "vcpu 0 (thread 42): in the guest" in text
    assert "queue 0 of 8: idle: nothing is to be done" in text


def test_json_has_every_number(written: list[str]) -> None:
    assert execute(["debug", "dump", "--json", "vm.sock"]) == 0
    found = json.loads(written[0])
    assert [vcpu["place"] for vcpu in found["vcpus"]] == ["guest", "exit"]
    (queue,) = found["devices"][0]["queues"]
    assert queue["ring"] == {
        "avail_flags": 0,
        "avail_idx": 5,
        "used_event": 5,
        "used_flags": 0,
        "used_idx": 5,
        "avail_event": 5,
    }
    assert queue["device"]["ring"]["next_avail"] == 5
    assert found["devices"][0]["transport"]["vectors"][0]["data"] == 0x41


def test_lines_of_a_device_that_works() -> None:
    assert as_lines(VmDump(40, ()), [IDLE], nothing_known) == [
        "vmm (pid 40)",
        "block:0 (pid 41): active",
        "  process: heard 0.0 s ago",
        "  driver: status 0xf, features 0x120000000, bus master on; MSI-X on, ISR 0x0, INTx down",
        "  queue 0 of 8: idle: nothing is to be done",
        "    memory: avail idx 5 flags 0x0, used idx 5 flags 0x0, events: avail 5, used 5",
        "    device: avail seen 5 taken 5, used 5 shown 5 signalled 5, idle",
        "    signals: no kick pending; vector 0 ready",
    ]


def test_lines_of_a_device_without_process_and_driver() -> None:
    device = changed(silent=True, alive=False, transport=None)
    assert as_lines(VmDump(40, ()), [device], nothing_known)[1:] == [
        "block:0 (pid 41): active",
        "  process: none now",
    ]


def test_position_that_is_not_known_is_said_to_be(written: list[str]) -> None:
    device = changed(at=POSITION._replace(ring=None, server="kernel"), ring=None)
    lines = as_lines(VmDump(40, ()), [device], nothing_known)
    assert "    kernel: knows no position" in lines


def test_masked_configuration_vector_is_told() -> None:
    device = changed(transport=TRANSPORT._replace(config_vector=0, function_masked=True))
    lines = as_lines(VmDump(40, ()), [device], nothing_known)
    assert "  configuration: vector 0 ready" in lines
    assert "MSI-X on, all vectors masked" in lines[3]


@pytest.mark.parametrize(
    ("place", "state", "expected"),
    [
        ("guest", "S", "sleeps in KVM: halted, or not started by the guest yet; sleeping"),
        ("guest", "R", "runs guest code; running"),
        ("exit", "S", "outside the guest: here; sleeping"),
        ("held", "S", "held: here; sleeping"),
        ("ended", "Z", "its thread has ended; ended"),
    ],
)
def test_vcpu_is_where_monitor_and_kernel_say(place: str, state: str, expected: str) -> None:
    vm = VmDump(40, (VcpuPlace(0, 42, place, "here" if place in ("exit", "held") else ""),))
    lines = as_lines(vm, [], lambda _pid, _tid: Task(state, 1.5))
    assert lines[1] == f"  vcpu 0 (thread 42): {expected}, 1.50 s of processor time"


def test_own_thread_is_seen_and_another_ones_is_not() -> None:
    task = read_task(os.getpid(), os.getpid())
    assert task is not None
    assert task.state == "R"
    assert read_task(os.getpid(), 0) is None
