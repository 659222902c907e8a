# SPDX-License-Identifier: BSD-3-Clause
"""A vmm that waits for its VM, in front of a control process that a test plays."""

from __future__ import annotations

import os
import socket
from typing import TYPE_CHECKING, NoReturn, cast

import pytest

from crosvm_py.cloud_hypervisor.events import EventMonitor
from crosvm_py.cloud_hypervisor.vmm import WaitingVmm
from crosvm_py.control.protocol import CONTROL_CODEC, FROM_KEEPER_CODEC, Answered, Ask, Serving
from crosvm_py.exit_status import VmExit
from crosvm_py.requests.creation import (
    INTERNAL,
    Booted,
    BootVm,
    DropFds,
    EndVm,
    ForgetVm,
    KeepFds,
    KeptFds,
)
from crosvm_py.requests.life import PowerButton, Stop
from crosvm_py.requests.protocol import Done, Failed
from crosvm_py.requests.vm import WAITING, QueryVm, VmFacts
from crosvm_py.vm_config.errors import UnfitConfigError
from crosvm_py.vm_config.problem import Problem
from sys_util.channel import Channel, socket_pair
from sys_util.errors import ConfigError, HostError
from sys_util.wire import Codec, encode

if TYPE_CHECKING:
    from collections.abc import Iterator

    from crosvm_py.requests.protocol import Request, Response
    from crosvm_py.vmm.control_proxy import KeeperProcess

ANSWERS = Codec((Failed, *{request.ANSWER: None for request in (*INTERNAL, QueryVm, Stop)}))


class FakeKeeper:
    """The keeper's channel; no process."""

    def __init__(self, channel: Channel) -> None:
        self.channel = channel


class Control:
    """A vmm, and the control process that asks it."""

    def __init__(self) -> None:
        ours, keeper = socket_pair()
        self._keeper = Channel(keeper, FROM_KEEPER_CODEC)
        self.error: Exception = ConfigError("no configuration")
        self.kept: frozenset[int] = frozenset()
        self.vmm = WaitingVmm(
            cast("KeeperProcess", FakeKeeper(Channel(ours, FROM_KEEPER_CODEC))),
            None,
            self._read_config,
            EventMonitor(-1),
            no_shutdown=False,
        )
        theirs, self.sock = socket_pair()
        self._keeper.send(Serving(1), [theirs.fileno()])
        theirs.close()
        self._channel = Channel(self.sock, CONTROL_CODEC)
        self._number = 0
        self.turn()

    def _read_config(self, kept: frozenset[int]) -> NoReturn:
        self.kept = kept
        raise self.error

    def turn(self) -> None:
        """Serve what has come, as ``run`` does."""
        for _ in range(3):
            self.vmm._loop.run_once(0)
        if self.vmm._booting is not None:
            self.vmm._try_boot(self.vmm._booting)

    def ask(self, request: Request, fds: tuple[int, ...] = ()) -> Response:
        self._number += 1
        self._channel.send(Ask(self._number, encode(request)), fds)
        self.turn()
        received = self._channel.receive()
        assert received is not None
        message, _ = received
        assert isinstance(message, Answered)
        assert message.number == self._number
        return ANSWERS.decode(message.answer)

    def close(self) -> None:
        assert self.vmm._link is not None
        self.vmm._link.close()
        self.vmm._loop.close()
        self._channel.close()
        self._keeper.close()


@pytest.fixture
def control() -> Iterator[Control]:
    made = Control()
    yield made
    made.close()


def is_open(fd: int) -> bool:
    try:
        os.fstat(fd)
    except OSError:
        return False
    return True


def test_vmm_waits(control: Control) -> None:
    assert control.ask(QueryVm()) == VmFacts(WAITING, 0, 0)
    assert control.ask(PowerButton()) == Failed("VM is not running")
    assert control.ask(EndVm()) == Done()
    assert control.ask(Stop()) == Done()
    assert control.vmm._exit == VmExit.STOPPED


def test_descriptors_are_kept_dropped_and_forgotten(control: Control) -> None:
    sent = tuple(os.eventfd(0) for _ in range(3))
    kept = control.ask(KeepFds(), sent)
    assert isinstance(kept, KeptFds)
    assert len(kept.numbers) == 3
    control.ask(BootVm())
    assert control.kept == set(kept.numbers)
    assert control.ask(DropFds((kept.numbers[0], 0, 1, 2, 999_999))) == Done()
    assert [is_open(fd) for fd in kept.numbers] == [False, True, True]
    assert all(map(is_open, (0, 1, 2)))
    assert control.ask(ForgetVm()) == Done()
    assert not any(map(is_open, kept.numbers))
    for fd in sent:
        os.close(fd)


def test_descriptors_with_another_request_are_closed(control: Control) -> None:
    before = len(os.listdir("/proc/self/fd"))
    sent = (os.eventfd(0),)
    assert control.ask(QueryVm(), sent) == VmFacts(WAITING, 0, 0)
    os.close(sent[0])
    assert len(os.listdir("/proc/self/fd")) == before


def host_error() -> HostError:
    error = HostError("open", "/disk")
    error.__cause__ = FileNotFoundError(2, "No such file or directory")
    return error


@pytest.mark.parametrize(
    ("error", "answer"),
    [
        (ConfigError("no kernel"), Booted(500, ("no kernel",))),
        (host_error(), Booted(500, ("open /disk", "No such file or directory"))),
        (
            UnfitConfigError(Problem("disks[0].id", "is used twice", 409)),
            Booted(409, ("disks[0].id is invalid", "is used twice")),
        ),
        (ConfigError("x" * 5000), Booted(500, ("x" * 1024,))),
        (
            OSError(24, "Too many open files"),
            Booted(
                500,
                (
                    (
                        "the host refuses a system call "
                        "(Control._read_config of cloud_hypervisor/test_vmm.py)"
                    ),
                    "Too many open files",
                ),
            ),
        ),
    ],
)
def test_refused_boot_is_answered_and_can_be_tried_again(
    control: Control, error: Exception, answer: Booted
) -> None:
    control.error = error
    assert control.ask(BootVm()) == answer
    assert control.ask(BootVm()) == answer
    assert control.ask(QueryVm()) == VmFacts(WAITING, 0, 0)


def test_boot_beside_a_boot_is_refused_and_both_are_answered(control: Control) -> None:
    for number in (1, 2):
        control._channel.send(Ask(number, encode(BootVm())))
    control.turn()
    answers = {}
    while (received := control._channel.receive()) is not None:
        assert isinstance(received[0], Answered)
        answers[received[0].number] = ANSWERS.decode(received[0].answer)
    assert answers == {
        1: Booted(500, ("no configuration",)),
        2: Booted(500, ("VM is being booted already",)),
    }


def test_control_process_that_says_anything_ends_alone(control: Control, lines: list[str]) -> None:
    control.sock.send(encode(Ask(1, b"\xc1")), socket.MSG_NOSIGNAL)
    control.turn()
    assert control.sock.recv(1) == b""
    assert any("control process" in line for line in lines)
