# SPDX-License-Identifier: BSD-3-Clause
"""What ``crosvm devices`` and ``crosvm limit`` show of the answer, and refuse before they ask."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from crosvm_py.cli.commands import devices, limit
from crosvm_py.cli.commands.devices import as_fields, table
from crosvm_py.cli.dispatch import execute
from crosvm_py.control import socket_client as client
from crosvm_py.control.socket_client import ControlError
from crosvm_py.requests.devices import (
    CounterInfo,
    DeviceInfo,
    DeviceList,
    LimitDevice,
    ListDevices,
    QueueInfo,
)
from crosvm_py.requests.protocol import Done
from devices.virtio.commands import DeviceLimits
from sys_util.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Callable

    from crosvm_py.requests.protocol import Request, Response

BLOCK = DeviceInfo(
    0,
    "block:0",
    41,
    "active",
    "block_device",
    (
        QueueInfo(128, True, 1234, "native"),
        QueueInfo(128, True, 0, "python"),
        QueueInfo(256, False),
    ),
    (CounterInfo("requests", 12345), CounterInfo("bytes_to_guest", 7), CounterInfo("restarts", 0)),
    "/sys/fs/cgroup/crosvm-40/block:0",
)
RNG = DeviceInfo(
    1,
    "rng",
    42,
    "idle",
    "rng_device",
    (QueueInfo(256, False),),
    (CounterInfo("requests", 0), CounterInfo("pages", 3)),
)

Asked = list[tuple[str, "Request"]]


@pytest.fixture
def written(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    written: list[str] = []
    for module in (devices, limit):
        monkeypatch.setattr(module, "write_out", written.append)
    return written


@pytest.fixture
def answer_with(monkeypatch: pytest.MonkeyPatch) -> Callable[[Response], Asked]:
    def answer_with(response: Response) -> Asked:
        asked: Asked = []

        def ask(path: str, request: Request) -> Response:
            asked.append((path, request))
            return response

        monkeypatch.setattr(client, "ask", ask)
        return asked

    return answer_with


def test_table_has_a_line_for_each_device_and_the_counters_all_have() -> None:
    assert table([BLOCK, RNG]) == [
        "INDEX  NAME     PID  STATE   POLICY        QUEUES  ENGINE         LIMIT  REQUESTS",
        "0      block:0  41   active  block_device  2/3     native+python  1.2s   12345",
        "1      rng      42   idle    rng_device    0/1     -              -      0",
    ]


def test_table_has_the_link_where_there_is_a_card() -> None:
    card = RNG._replace(name="net:0", link="down")
    found = [line.split()[:5] for line in table([card, RNG])]
    assert found == [
        ["INDEX", "NAME", "PID", "STATE", "LINK"],
        ["1", "net:0", "42", "idle", "down"],
        ["1", "rng", "42", "idle", "-"],
    ]


def test_table_without_devices_is_its_head() -> None:
    assert table([]) == ["INDEX  NAME  PID  STATE  POLICY  QUEUES  ENGINE  LIMIT"]


def test_fields_have_no_cgroup_where_there_is_none() -> None:
    assert as_fields(RNG)["cgroup"] is None


def test_fields_have_every_queue_and_counter() -> None:
    assert as_fields(BLOCK) == {
        "index": 0,
        "name": "block:0",
        "pid": 41,
        "state": "active",
        "policy": "block_device",
        "cgroup": "/sys/fs/cgroup/crosvm-40/block:0",
        "link": None,
        "queues": [
            {"size": 128, "enabled": True, "engine": "native", "limit_wait_ms": 1234},
            {"size": 128, "enabled": True, "engine": "python", "limit_wait_ms": None},
            {"size": 256, "enabled": False, "engine": None, "limit_wait_ms": None},
        ],
        "counters": {"requests": 12345, "bytes_to_guest": 7, "restarts": 0},
    }


def test_devices_asks_the_vm(answer_with: Callable[[Response], Asked], written: list[str]) -> None:
    asked = answer_with(DeviceList((BLOCK, RNG)))
    assert execute(["devices", "vm.sock"]) == 0
    assert asked == [("vm.sock", ListDevices())]
    assert written == ["\n".join(table([BLOCK, RNG])) + "\n"]


def test_devices_as_json_can_be_read_again(
    answer_with: Callable[[Response], Asked], written: list[str]
) -> None:
    answer_with(DeviceList((BLOCK, RNG)))
    assert execute(["devices", "--json", "vm.sock"]) == 0
    assert json.loads(written[0]) == [as_fields(BLOCK), as_fields(RNG)]


def test_limit_without_values_only_asks(
    answer_with: Callable[[Response], Asked], written: list[str]
) -> None:
    asked = answer_with(DeviceLimits((1, 2, 3, 4, 5, 6)))
    assert execute(["limit", "block:0", "vm.sock"]) == 0
    assert asked == [("vm.sock", LimitDevice("block:0", (None,) * 6))]
    line = (
        "bw-size=1,bw-one-time-burst=2,bw-refill-time=3,"
        "ops-size=4,ops-one-time-burst=5,ops-refill-time=6\n"
    )
    assert written == [line]


def test_limit_sends_what_is_given(
    answer_with: Callable[[Response], Asked], written: list[str]
) -> None:
    asked = answer_with(DeviceLimits((0,) * 6))
    assert execute(["limit", "rng", "bw-size=1m,ops-size=0", "vm.sock"]) == 0
    assert asked == [("vm.sock", LimitDevice("rng", (1 << 20, None, None, 0, None, None)))]


@pytest.mark.parametrize("command", [["devices", "s"], ["limit", "rng", "s"]])
def test_answer_to_something_else_is_refused(
    answer_with: Callable[[Response], Asked], command: list[str]
) -> None:
    answer_with(Done())
    with pytest.raises(ControlError, match="s: an answer to another question"):
        execute(command)


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        pytest.param(["devices"], "devices: SOCKET is missing", id="no-socket"),
        pytest.param(["devices", "a", "b"], "unexpected argument 'b'", id="two-sockets"),
        pytest.param(["limit", "rng"], "limit: SOCKET is missing", id="no-socket-of-limit"),
        pytest.param(["limit", "rng", "a", "b", "c"], "unexpected argument 'c'", id="too-many"),
        pytest.param(["limit", "rng", "ops-size=-1", "s"], "not a number", id="negative"),
        pytest.param(["limit", "rng", f"ops-size={1 << 64}", "s"], "above the limit", id="large"),
        pytest.param(["limit", "rng", "size=1", "s"], "unknown key 'size'", id="key"),
        pytest.param(["limit", "rng", "", "s"], "the value is empty", id="empty"),
        pytest.param(["limit", "x" * 65, "s"], "no device has such a name", id="name"),
    ],
)
def test_command_line_that_makes_no_sense_is_refused(words: list[str], reason: str) -> None:
    with pytest.raises(UsageError, match=reason):
        execute(words)
