# SPDX-License-Identifier: BSD-3-Clause
"""What each endpoint answers in each state, and what it asks of the vmm."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

import pytest

from crosvm_py.api.routes import FIXED
from crosvm_py.requests.balloon import BalloonQuery
from crosvm_py.requests.devices import (
    CounterInfo,
    DeviceInfo,
    DeviceList,
    ListDevices,
    ResizeNamedDisk,
)
from crosvm_py.requests.life import PowerButton, Reboot, Resume, Stop, Suspend
from crosvm_py.requests.protocol import Failed
from crosvm_py.requests.resize import Resize, Resized
from crosvm_py.requests.vm import InjectNmi, QueryVm
from devices.virtio.commands import BalloonState, DiskSize
from tests.crosvm_py.api.rig import PID, Rig, request

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from crosvm_py.requests.pending import Pending
    from crosvm_py.requests.protocol import Request

DEVICES = DeviceList(
    tuple(
        DeviceInfo(at, name, 1, "served", "p", (), (CounterInfo("bytes_to_guest", 7),))
        for at, name in enumerate(("block:0", "block:1", "rng"))
    )
)
STATE = BalloonState(0, 0, 0, False, False, 0, (), True, 0, False)


def test_ping_says_who_we_are(rig: Rig) -> None:
    found = cast("dict[str, object]", rig.get("vmm.ping").json())
    assert found["version"] == "51.1.0"
    assert str(found["build_version"]).startswith("v51.1.0-crosvm-py-")
    assert found["pid"] == PID
    assert found["features"] == ["kvm"]


@pytest.mark.parametrize("state", ["running", "suspended"])
def test_info_has_configuration_and_state(rig: Rig, state: str) -> None:
    rig.state = state
    found = cast("dict[str, dict[str, object]]", rig.get("vm.info").json())
    assert str(found["state"]) == {"running": "Running", "suspended": "Paused"}[state]
    disks = cast("list[dict[str, object]]", found["config"]["disks"])
    assert [disk["id"] for disk in disks] == ["_disk0", "data"]


def test_info_of_a_vm_that_ends_in_between_is_that_of_one_that_has_ended(rig: Rig) -> None:
    states = iter(("running", "ended"))
    ask = rig.ask

    def ask_next(request: Request, fds: Sequence[int] = ()) -> Pending:
        if isinstance(request, QueryVm):
            rig.state = next(states)
        return ask(request, fds)

    rig.answers[ListDevices] = Failed("VM is not running")
    rig.ask = ask_next  # type: ignore[method-assign]  # a rig is for one test
    assert cast("dict[str, object]", rig.get("vm.info").json())["state"] == "Created"


def test_balloon_whose_process_has_ended_does_not_keep_info_from_its_answer(rig: Rig) -> None:
    rig.answers[BalloonQuery] = Failed("balloon: it has no process")
    assert rig.get("vm.info").status == 200


@pytest.mark.parametrize(
    ("name", "state", "asked"),
    [
        ("vm.pause", "running", Suspend()),
        ("vm.resume", "suspended", Resume()),
        ("vm.power-button", "running", PowerButton()),
        ("vm.nmi", "suspended", InjectNmi()),
        ("vm.shutdown", "running", Stop()),
        ("vm.delete", "running", Stop()),
        ("vm.reboot", "running", Reboot()),
        ("vm.reboot", "suspended", Reboot()),
    ],
)
def test_call_is_carried_out(rig: Rig, name: str, state: str, asked: Request) -> None:
    rig.state = state
    answer = rig.put(name)
    assert (answer.status, answer.body) == (204, b"")
    assert rig.asked() == [asked]


def test_end_of_the_vmm_is_answered_with_an_empty_body(rig: Rig) -> None:
    answer = rig.put("vmm.shutdown")
    assert answer.status == 200
    assert b"Content-Length: 0" in answer.head


@pytest.mark.parametrize(
    ("name", "state", "words"),
    [
        ("vm.pause", "suspended", ["The VM could not be paused", "from Paused to Paused"]),
        ("vm.resume", "running", ["The VM could not resume", "from Running to Running"]),
        ("vm.pause", "waiting", ["The VM could not be paused", "not running"]),
        ("vm.nmi", "ended", ["The VM could not be sent an NMI", "not running"]),
        ("vm.boot", "running", ["The VM could not boot", "already running"]),
    ],
)
def test_call_in_the_wrong_state_fails_and_asks_nothing(
    rig: Rig, name: str, state: str, words: list[str]
) -> None:
    rig.state = state
    answer = rig.put(name)
    assert answer.status == 500
    first, *reasons = cast("list[str]", answer.json())
    assert first == "Error from API"
    assert all(word in reason for word, reason in zip(words, reasons, strict=True))
    assert rig.asked() == []


def test_refusal_of_the_vmm_is_the_cause(rig: Rig) -> None:
    rig.answers[Suspend] = Failed("the vCPUs did not\nstand still \xe9")
    answer = rig.put("vm.pause")
    assert answer.body.isascii()
    assert answer.json() == [
        *("Error from API", "The VM could not be paused"),
        "the vCPUs did not stand still \xe9",
    ]


@pytest.mark.parametrize(
    ("data", "status", "body"),
    [
        (request("GET", "vm.boot"), 400, b'["Bad Request"]'),
        (request("PUT", "vm.info"), 400, b'["Bad Request"]'),
        (request("DELETE", "vm.info"), 400, b'["Bad Request"]'),
        (request("PUT", "vm.boot", b"{}"), 400, b'["Bad Request"]'),
        (request("PUT", "vm.resize"), 400, b'["Bad Request"]'),
        (request("PUT", "vm.create"), 400, b""),
        (request("GET", "vm.info?x=y"), 404, b'["Not Found"]'),
        (request("GET", "vm.Info"), 404, b'["Not Found"]'),
        (request("GET", ""), 404, b'["Not Found"]'),
        (b"GET /vm.info HTTP/1.1\r\n\r\n", 404, b'["Not Found"]'),
        (b"GET vm.info HTTP/1.1\r\n\r\n", 400, None),
        (request("PUT", "vm.resize", b"{"), 400, None),
        (request("PUT", "vm.resize", b'{"desired_ram":true}'), 400, None),
        (request("PUT", "vm.resize", b'{"desired_vcpus":2}'), 500, None),
        (request("PUT", "vm.resize", b'{"desired_vcpus":0}'), 500, None),
        (request("PUT", "vm.resize", b'{"desired_balloon":18446744073709551615}'), 500, None),
    ],
)
def test_unfit_request_is_answered_as_cloud_hypervisor_does(
    rig: Rig, data: bytes, status: int, body: bytes | None
) -> None:
    with rig.client() as sock:
        answer = rig.call(sock, data)
        assert answer.status == status
        assert body in (None, answer.body)
        assert rig.call(sock, request("GET", "vmm.ping")).status == 200


def test_json_error_names_the_key(rig: Rig) -> None:
    answer = rig.put("vm.resize-disk", b'{"id":"data","desired_size":"1"}')
    words = cast("list[str]", answer.json())
    assert words[0] == "Failed to deserialize JSON"
    assert "desired_size" in words[1]


def test_absolute_target_is_understood(rig: Rig) -> None:
    with rig.client() as sock:
        data = b"GET http://localhost/api/v1/vmm.ping HTTP/1.1\r\n\r\n"
        assert rig.call(sock, data).status == 200


def test_balloon_is_resized_and_the_configuration_follows(rig: Rig) -> None:
    assert rig.put("vm.resize", b'{"desired_balloon":4194304,"desired_vcpus":1}').status == 204
    assert rig.asked() == [Resize(1, None, 4 << 20)]
    found = cast("dict[str, dict[str, dict[str, int]]]", rig.get("vm.info").json())
    assert found["config"]["balloon"]["size"] == 4 << 20


def test_resize_while_vcpus_are_being_removed_is_too_early(rig: Rig) -> None:
    rig.answers[Resize] = Resized(is_busy=True)
    answer = rig.put("vm.resize", b'{"desired_vcpus":1,"desired_balloon":4096}')
    assert (answer.status, answer.body) == (429, b'["Too Many Requests"]')
    found = cast("dict[str, dict[str, dict[str, int]]]", rig.get("vm.info").json())
    assert found["config"]["balloon"]["size"] == 0


def test_resize_that_the_vmm_refuses_changes_nothing(rig: Rig) -> None:
    rig.answers[Resize] = Failed("no")
    assert rig.put("vm.resize", b'{"desired_ram":1073741824}').status == 500
    found = cast("dict[str, dict[str, dict[str, int]]]", rig.get("vm.info").json())
    assert found["config"]["memory"]["size"] == 512 << 20


def test_info_has_the_number_of_vcpus_that_there_are(rig: Rig) -> None:
    rig.cpus = 3
    found = cast("dict[str, dict[str, dict[str, int]]]", rig.get("vm.info").json())
    assert found["config"]["cpus"]["boot_vcpus"] == 3


@pytest.mark.parametrize(
    ("name", "device"), [("_disk0", "block:0"), ("data", "block:1"), ("block:1", "block:1")]
)
def test_disk_is_resized_by_its_id(rig: Rig, name: str, device: str) -> None:
    rig.answers[ResizeNamedDisk] = DiskSize(1024)
    body = b'{"id":"%s","desired_size":1024}' % name.encode()
    assert rig.put("vm.resize-disk", body).status == 204
    assert rig.asked() == [ResizeNamedDisk(device, 1024)]


@pytest.mark.parametrize(("name", "size", "status"), [("_disk9", 512, 404), ("data", 513, 500)])
def test_disk_that_cannot_be_resized_is_named(rig: Rig, name: str, size: int, status: int) -> None:
    body = b'{"id":"%s","desired_size":%d}' % (name.encode(), size)
    assert rig.put("vm.resize-disk", body).status == status
    assert rig.asked() == []


def test_counters_have_the_names_of_cloud_hypervisor(rig: Rig) -> None:
    rig.answers[ListDevices] = DEVICES
    assert rig.get("vm.counters").json() == {
        "_disk0": {"read_bytes": 7},
        "data": {"read_bytes": 7},
        "__rng": {"bytes_to_guest": 7},
    }


def counted(**values: int) -> DeviceList:
    counters = tuple(CounterInfo(*pair) for pair in values.items())
    return DeviceList((DeviceInfo(0, "block:0", 1, "active", "block_device", (), counters),))


IDLE = dict.fromkeys(("read_ops", "read_timed", "read_ns", "read_min_ns", "read_max_ns"), 0)
IDLE |= {name.replace("read", "write"): 0 for name in IDLE}


def test_latencies_are_told_in_microseconds(rig: Rig) -> None:
    done = {"read_ops": 9, "read_timed": 2, "read_ns": 9000, "read_min_ns": 1999}
    rig.answers[ListDevices] = counted(**IDLE | done | {"read_max_ns": 7001})
    assert rig.get("vm.counters").json() == {
        "_disk0": {
            "read_ops": 9,
            "write_ops": 0,
            "read_latency_min": 1,
            "read_latency_max": 7,
            "read_latency_avg": 4,
            "write_latency_min": (1 << 64) - 1,
            "write_latency_max": 0,
            "write_latency_avg": 0,
        }
    }


def test_counters_of_a_vmm_that_tells_half_are_told_all_the_same(rig: Rig) -> None:
    rig.answers[ListDevices] = counted(read_timed=3, read_ns=1 << 63)
    assert rig.get("vm.counters").status == 200


def test_lost_control_process_leaves_its_configuration_to_the_next(
    rig: Rig, tmp_path: Path
) -> None:
    assert rig.put("vm.resize", b'{"desired_balloon":8388608}').status == 204
    (tmp_path / "next").mkdir()
    after = Rig(tmp_path / "next", None, store=rig.store)
    found = cast("dict[str, dict[str, dict[str, int]]]", after.get("vm.info").json())
    assert found["config"]["balloon"]["size"] == 8 << 20
    after.close()


def test_spoiled_configuration_is_none(tmp_path: Path, lines: list[str]) -> None:
    rig = Rig(tmp_path, None, spoiled=b"[]")
    assert rig.get("vm.info").status == 404
    assert lines
    rig.close()


def test_every_endpoint_is_there() -> None:
    assert len(FIXED) == 31


def test_device_tree_has_addresses_and_segments(rig: Rig) -> None:
    disk = DEVICES.devices[0]._replace(slot=32 + 6, bar_gpa=0xD000_8000)
    rig.answers[ListDevices] = DeviceList((disk, DEVICES.devices[2]))
    found = cast("dict[str, dict[str, dict[str, object]]]", rig.get("vm.info").json())
    tree = found["device_tree"]
    (transport,) = (each for name, each in tree.items() if "pci_bdf" in each)
    assert transport["pci_bdf"] == "0001:00:06.0"
    assert transport["resources"] == [
        {
            "PciBar": {
                "index": 0,
                "size": 0x8000,
                "type_": "Mmio32",
                "prefetchable": False,
                "base": 0xD000_8000,
            }
        }
    ]
    assert tree["_virtio-pci-__rng"]["resources"] == []
