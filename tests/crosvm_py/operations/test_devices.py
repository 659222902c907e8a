# SPDX-License-Identifier: BSD-3-Clause
"""What clients learn of devices, and how a device process may answer a command."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import pytest

from crosvm_py.device_process import protocol
from crosvm_py.kinds.net import NET
from crosvm_py.kinds.vsock import VHOST_VSOCK, VSOCK
from crosvm_py.operations.devices import find_device, limit_device, list_devices
from crosvm_py.requests.catalogue import RESPONSES
from crosvm_py.requests.devices import (
    CounterInfo,
    DeviceList,
    LimitDevice,
    ListDevices,
    QueueInfo,
)
from crosvm_py.requests.protocol import MAX_RESPONSE_BYTES, Failed
from devices.virtio.backend import QueueActivation
from devices.virtio.commands import DeviceLimits, Obeyed, Refused, SetLimits
from devices.virtio.counters import NATIVE, VHOST, Counters
from devices.virtio.rate_limiter import LIMIT_NAMES
from devices.virtio.vsock.common import COUNTERS
from sys_util.errors import ConfigError
from sys_util.wire import Message, encode
from tests.crosvm_py.hostile_device import HostileDevice
from tests.crosvm_py.operations.running_vm import vm_of

if TYPE_CHECKING:
    from crosvm_py.requests.protocol import Response

LIMITS = {name: at for at, name in enumerate(LIMIT_NAMES)}
NOTHING = (None,) * len(LIMIT_NAMES)


def queue(index: int) -> QueueActivation:
    return QueueActivation(index, 256, 0, 0, 0, -1, -1, False)


def limit(device: HostileDevice, *values: int | None) -> list[Response]:
    """Order new limits and return where the answer will be."""
    answers: list[Response] = []
    request = LimitDevice(device.host.name, values or NOTHING)
    limit_device(vm_of(device.host), request).deliver_to(answers.append)
    return answers


def test_list_tells_what_the_vmm_knows(device: HostileDevice) -> None:
    device.host.cells = list(range(100, 116))
    device.host.pid = 77
    (info,) = list_devices(vm_of(device.host), ListDevices()).devices
    assert (info.index, info.name, info.pid) == (0, device.host.name, 77)
    assert (info.state, info.policy) == ("idle", device.host.kind.policy_name)
    assert info.queues == (QueueInfo(256, False), QueueInfo(256, False))
    assert info.counters[:6] == (
        CounterInfo("requests", 100),
        CounterInfo("bytes_from_guest", 101),
        CounterInfo("bytes_to_guest", 102),
        CounterInfo("errors", 103),
        CounterInfo("kicks", 104),
        CounterInfo("interrupts", 105),
    )
    assert info.counters[-1] == CounterInfo("restarts", 0)


def test_list_tells_how_long_a_queue_waits_for_its_limit(
    device: HostileDevice, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(time, "monotonic_ns", lambda: 10**9)
    device.host.cells = [*[0] * 16, 0b10, 10**9 + 1_500_001, 0b1, 10**9 - 5]
    device.host.status.activated([queue(0), queue(1)])
    (info,) = list_devices(vm_of(device.host), ListDevices()).devices
    assert info.queues == (QueueInfo(256, True, 0, "python"), QueueInfo(256, True, 2, "python"))
    device.host.status.queue_stopped(1)
    (info,) = list_devices(vm_of(device.host), ListDevices()).devices
    assert info.queues == (QueueInfo(256, True, 0, "python"), QueueInfo(256, False, 0))


def test_list_tells_which_engine_serves_each_started_queue(device: HostileDevice) -> None:
    cells = memoryview(bytearray(8 * 32)).cast("Q")
    Counters(cells).show_engines({0: NATIVE, 1: VHOST})
    device.host.cells = cells
    device.host.status.activated([queue(0), queue(1)])
    (info,) = list_devices(vm_of(device.host), ListDevices()).devices
    assert [queue.engine for queue in info.queues] == ["native", "vhost"]
    device.host.status.queue_stopped(0)
    (info,) = list_devices(vm_of(device.host), ListDevices()).devices
    assert [queue.engine for queue in info.queues] == ["", "vhost"]


def test_vsock_of_the_kernel_has_no_counters_of_ours(device: HostileDevice) -> None:
    """Both devices are called vsock, and only ours counts connections."""
    device.host.cells = list(range(100, 132))
    found = {}
    for kind in (VSOCK, VHOST_VSOCK):
        device.host.name, device.host.kind = "vsock", kind
        (info,) = list_devices(vm_of(device.host), ListDevices()).devices
        assert info.policy == kind.policy_name
        found[kind.name] = {counter.name for counter in info.counters}
    assert found["vsock"] - found["vhost-vsock"] == set(COUNTERS)


def test_list_tells_what_link_a_card_shows(
    device: HostileDevice, monkeypatch: pytest.MonkeyPatch
) -> None:
    device.host.kind = NET
    for status, link in ((0, "down"), (1, "up"), (2, "down"), (3, "up")):
        config = bytes(6) + status.to_bytes(2, "little") + bytes(9)
        monkeypatch.setattr(device.host, "_config", config)
        (info,) = list_devices(vm_of(device.host), ListDevices()).devices
        assert info.link == link


def test_list_asks_no_device(device: HostileDevice) -> None:
    list_devices(vm_of(device.host), ListDevices())
    with pytest.raises(BlockingIOError, match="temporarily unavailable"):
        device.take()


def test_list_of_many_devices_with_everything_fits_an_answer(device: HostileDevice) -> None:
    device.host.name = "console:" + "9" * 56
    device.host.cells = [(1 << 64) - 1] * 20
    device.host.queue_sizes = (32768,) * 64
    device.host.status.activated([queue(index) for index in range(64)])
    answer = encode(list_devices(vm_of(*[device.host] * 31), ListDevices()))
    assert len(answer) <= MAX_RESPONSE_BYTES
    assert isinstance(RESPONSES.decode(answer), DeviceList)


def test_device_is_found_by_its_name_and_the_first_by_its_kind(device: HostileDevice) -> None:
    device.host.name = "block:0"
    assert find_device([device.host], "block:0") is device.host
    assert find_device([device.host], "block") is device.host


@pytest.mark.parametrize("name", ["", "block:1", "net", "block:00", "x" * 64])
def test_unknown_device_is_refused_with_those_there_are(device: HostileDevice, name: str) -> None:
    device.host.name = "block:0"
    with pytest.raises(ConfigError, match=r"no device .* \(it has block:0\)"):
        find_device([device.host], name)


def test_vm_without_devices_says_so() -> None:
    with pytest.raises(ConfigError, match="it has none at all"):
        find_device([], "rng")


def test_limits_cross_in_their_order_and_only_those_given(device: HostileDevice) -> None:
    limit(device, 5, None, 7, None, None, 0)
    order, _ = device.take()
    assert order == protocol.Order(1, SetLimits((5, None, 7, None, None, 0)))


def test_limits_of_the_device_are_the_answer(device: HostileDevice) -> None:
    answers = limit(device)
    device.send(protocol.Answer(1, DeviceLimits((0, 1, 2, 3, 4, 5))))
    device.turn()
    assert answers == [DeviceLimits((0, 1, 2, 3, 4, 5))]


def test_refusal_is_the_clients_answer(device: HostileDevice) -> None:
    answers = limit(device)
    device.send(protocol.Answer(1, Refused("no" * 256)))
    device.turn()
    (answer,) = answers
    assert isinstance(answer, Failed)
    assert answer.reason == f"{device.host.name}: " + "no" * 256


@pytest.mark.parametrize(
    "answer",
    [
        pytest.param(Obeyed(), id="of another command"),
        pytest.param(DeviceLimits((0,) * 5), id="too few"),
        pytest.param(DeviceLimits((0, 1, 2, -3, 4, 5)), id="negative"),
        pytest.param(DeviceLimits((0, 1, 2, 1 << 63, 4, 5)), id="too large"),
        pytest.param(Refused("no" * 2000), id="too long a reason"),
    ],
)
def test_nonsense_of_the_device_ends_it(device: HostileDevice, answer: Message) -> None:
    answers = limit(device)
    device.send(protocol.Answer(1, answer))
    device.turn()
    assert device.verdict
    assert answers == [Failed(f"{device.host.name}: the device process has ended")]


def test_device_that_dies_meanwhile_is_an_answer(device: HostileDevice) -> None:
    answers = limit(device)
    device.host.close()
    assert answers == [Failed(f"{device.host.name}: the device process has ended")]


@pytest.mark.parametrize("count", [0, 5])
def test_another_number_of_limits_is_refused(device: HostileDevice, count: int) -> None:
    request = LimitDevice(device.host.name, (None,) * count)
    with pytest.raises(ConfigError, match=f"{count} limits instead of 6"):
        limit_device(vm_of(device.host), request)
