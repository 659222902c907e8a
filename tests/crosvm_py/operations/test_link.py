# SPDX-License-Identifier: BSD-3-Clause
"""``crosvm link``, from its words to the device and back."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from crosvm_py.cli.dispatch import execute
from crosvm_py.control import socket_client as client
from crosvm_py.control.socket_client import ControlError
from crosvm_py.device_process import protocol
from crosvm_py.kinds.block import BLOCK
from crosvm_py.kinds.net import NET
from crosvm_py.operations.link import set_link
from crosvm_py.requests.devices import DeviceList
from crosvm_py.requests.net import SetLink
from crosvm_py.requests.protocol import Done, Failed
from devices.virtio.commands import Obeyed, Refused
from sys_util.errors import ConfigError, UsageError
from tests.crosvm_py.hostile_device import READY, HostileDevice
from tests.crosvm_py.operations.running_vm import vm_of

if TYPE_CHECKING:
    from collections.abc import Iterator

    from crosvm_py.requests.protocol import Request, Response


@pytest.fixture
def device() -> Iterator[HostileDevice]:
    device = HostileDevice()
    device.host.name, device.host.kind = "net:0", NET
    device.send(READY)
    device.turn()
    yield device
    device.close()


@pytest.mark.parametrize("name", ["net:0", "net"])
@pytest.mark.parametrize("up", [True, False])
def test_link_is_an_order_to_the_card(device: HostileDevice, name: str, *, up: bool) -> None:
    answers: list[Response] = []
    set_link(vm_of(device.host), SetLink(name, up)).deliver_to(answers.append)
    device.send(protocol.Answer(1, Obeyed()))
    device.turn()
    assert answers == [Done()]


def test_link_refused_is_said(device: HostileDevice) -> None:
    answers: list[Response] = []
    set_link(vm_of(device.host), SetLink("net:0", True)).deliver_to(answers.append)
    device.send(protocol.Answer(1, Refused("no")))
    device.turn()
    assert answers == [Failed("net:0: no")]


def test_link_of_another_device_is_refused(device: HostileDevice) -> None:
    device.host.name, device.host.kind = "block:0", BLOCK
    with pytest.raises(ConfigError, match="block:0 is no network card"):
        set_link(vm_of(device.host), SetLink("block:0", True))


@pytest.mark.parametrize(("word", "up"), [("up", True), ("down", False)])
def test_command_asks_the_vm(monkeypatch: pytest.MonkeyPatch, word: str, *, up: bool) -> None:
    asked: list[tuple[str, Request]] = []

    def ask(path: str, request: Request) -> Response:
        asked.append((path, request))
        return Done()

    monkeypatch.setattr(client, "ask", ask)
    assert execute(["link", "net:0", word, "vm.sock"]) == 0
    assert asked == [("vm.sock", SetLink("net:0", up))]


def test_command_takes_no_other_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "ask", lambda _path, _request: DeviceList(()))
    with pytest.raises(ControlError, match=r"vm\.sock: an answer to another question"):
        execute(["link", "net:0", "up", "vm.sock"])


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["net:0", "sideways", "vm.sock"], "link: 'sideways' is neither up nor down"),
        (["n" * 65, "up", "vm.sock"], "no device has such a name"),
        (["net:0", "up"], "is missing"),
    ],
)
def test_command_without_sense_is_refused(words: list[str], reason: str) -> None:
    with pytest.raises(UsageError, match=reason):
        execute(["link", *words])
