# SPDX-License-Identifier: BSD-3-Clause
"""The borders of the control process: what the vmm, it and its keeper say to each other."""

from __future__ import annotations

import array
import socket
from contextlib import suppress
from itertools import chain
from typing import TYPE_CHECKING

import pytest

from crosvm_py.control import protocol as control_protocol
from crosvm_py.control.process import VmmLink
from crosvm_py.requests.catalogue import REQUESTS, RESPONSES
from crosvm_py.requests.life import Resume
from crosvm_py.requests.protocol import Done, Failed
from crosvm_py.vmm.control_link import ControlLink
from sys_util import child_log
from sys_util.channel import Channel, socket_pair
from sys_util.errors import VmmError
from sys_util.event_loop import EventLoop
from sys_util.wire import encode
from tests.fuzz.unforeseen import unforeseen_errors_are_finds
from tests.support.strangers import DEPTHS, hostile_payloads

if TYPE_CHECKING:
    from collections.abc import Iterator

    from crosvm_py.requests.protocol import Response

# The control process and its keeper, for the vmm


@pytest.fixture(autouse=True)
def _finds(lines: list[str]) -> Iterator[None]:
    with unforeseen_errors_are_finds():
        yield


class ControlVmm:
    """The vmm's end of the control process, with a control process and a keeper of ours."""

    def __init__(self) -> None:
        self.loop = EventLoop()
        ours, self.keeper = socket_pair()
        self.keeper.setblocking(False)
        keeper = Channel(ours, control_protocol.FROM_KEEPER_CODEC)
        self.link = ControlLink(self.loop, keeper, lambda _request: Done())

    def send(self, sock: socket.socket, payload: bytes) -> None:
        with suppress(OSError):  # it may have been closed, and its buffer is full then
            sock.send(payload)
        for _ in range(3):
            self.loop.run_once(0)

    def new_control(self) -> socket.socket:
        ours, theirs = socket_pair()
        with theirs:
            rights = array.array("i", [theirs.fileno()])
            serving = encode(control_protocol.Serving(1))
            self.keeper.sendmsg([serving], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, rights)])
            self.loop.run_once(0)
        ours.setblocking(False)
        return ours

    def serves(self) -> bool:
        with self.new_control() as sock:
            self.send(sock, encode(control_protocol.Ask(7, encode(Resume()))))
            answered = control_protocol.CONTROL_CODEC.decode(sock.recv(65536))
        return answered == control_protocol.Answered(7, encode(Done()))

    def close(self) -> None:
        self.link.close()
        self.loop.close()
        self.keeper.close()


@pytest.fixture
def vmm(lines: list[str]) -> Iterator[ControlVmm]:
    made = ControlVmm()
    yield made
    made.close()
    assert lines


@pytest.mark.slow
def test_control_process_that_says_anything_ends_alone(vmm: ControlVmm) -> None:
    for payload in hostile_payloads(control_protocol.FROM_CONTROL_CODEC, depths=DEPTHS[::4]):
        with vmm.new_control() as sock:
            vmm.send(sock, payload)
    for payload in hostile_payloads(REQUESTS, depths=DEPTHS[::8]):
        with vmm.new_control() as sock:
            vmm.send(sock, encode(control_protocol.Ask(1, payload[:4096])))
    assert vmm.serves()


def test_control_process_has_one_last_word(vmm: ControlVmm, lines: list[str]) -> None:
    with vmm.new_control() as sock:
        for _ in range(100):
            vmm.send(sock, encode(child_log.Crashed("it is full")))
            vmm.send(sock, encode(child_log.CallDenied(1)))
    assert len([line for line in lines if "control process" in line]) == 1
    assert vmm.serves()


def test_keeper_that_says_anything_is_told_of_and_the_vm_goes_on(
    vmm: ControlVmm, lines: list[str]
) -> None:
    for payload in hostile_payloads(control_protocol.FROM_KEEPER_CODEC, depths=DEPTHS[::4]):
        vmm.send(vmm.keeper, payload)
    assert any("no control process can be started again" in line for line in lines)


# The vmm, for the control process


def test_clients_that_go_before_they_are_answered_cost_no_more_than_an_error() -> None:
    loop = EventLoop()
    ours, theirs = socket_pair()
    link = VmmLink(loop, Channel(ours, control_protocol.CONTROL_CODEC))
    for _ in range(control_protocol.MAX_REQUESTS):
        link.ask(Resume())
        theirs.recv(65536)
    with pytest.raises(VmmError, match="busy with other requests"):
        link.ask(Resume())
    theirs.send(encode(control_protocol.Answered(0, encode(Done()))))
    loop.run_once(0)
    link.ask(Resume())
    theirs.close()
    ours.close()
    loop.close()


def test_vmm_that_answers_anything_ends_no_control_process() -> None:
    loop = EventLoop()
    ours, theirs = socket_pair()
    link = VmmLink(loop, Channel(ours, control_protocol.CONTROL_CODEC))
    answers: list[Response] = []
    payloads = chain(hostile_payloads(RESPONSES, depths=()), [encode(Done())])
    for number, payload in enumerate(payloads):
        link.ask(Resume()).deliver_to(answers.append)
        theirs.recv(65536)
        theirs.send(encode(control_protocol.Answered(number, payload[:60_000])))
        loop.run_once(0)
    assert {type(answer) for answer in answers[:-1]} == {Failed}
    assert answers[number] == Done()
    theirs.close()
    ours.close()
    loop.close()
