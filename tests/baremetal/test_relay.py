# SPDX-License-Identifier: BSD-3-Clause
"""Lines of a running VM that leave as datagrams, and who has the sockets."""

from __future__ import annotations

import signal
import socket
from typing import TYPE_CHECKING

import pytest

from tests.baremetal.vmm import Vmm, eventually
from tests.guests.baremetal.build import build_guest
from tests.support.sockets import arrived, datagram_sockets

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = [pytest.mark.kvm, pytest.mark.slow]


@pytest.fixture
def receiver(tmp_path: Path) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as receiver:
        receiver.bind(str(tmp_path / "console"))
        receiver.setblocking(False)
        yield receiver


@pytest.fixture
def words(tmp_path: Path) -> list[str | Path]:
    """A guest that says it spins, and does."""
    console = f"type=unix,path={tmp_path}/console,num=1,console"
    return ["-m", "16", "--serial", console, build_guest("spin", tmp_path)]


@pytest.mark.parametrize("sandbox", [[], ["--disable-sandbox"]], ids=["sandbox", "unconfined"])
def test_no_process_but_the_relay_has_a_datagram_socket(
    receiver: socket.socket, words: list[str | Path], sandbox: list[str]
) -> None:
    with Vmm([*sandbox, *words]) as vmm:
        assert eventually(lambda: arrived(receiver) == [b"spinning"])
        processes = vmm.processes()
        (relay,) = vmm.hold("crosvm-relay")
        assert datagram_sockets(relay) == 1
        assert [datagram_sockets(pid) for pid in processes.all()] == [0] * len(processes.all())
        vmm.signal(signal.SIGTERM)
        assert vmm.wait() == 0


def test_relay_ends_with_a_vmm_that_is_killed(
    receiver: socket.socket, words: list[str | Path]
) -> None:
    with Vmm(words) as vmm:
        assert eventually(lambda: bool(arrived(receiver)))
        vmm.processes()
        assert vmm.hold("crosvm-relay")
        vmm.signal(signal.SIGKILL)
        vmm.wait()
        assert vmm.nothing_is_left()


def test_vmm_keeps_no_datagram_socket_that_it_inherited(
    receiver: socket.socket, words: list[str | Path]
) -> None:
    with Vmm(words, fds=[receiver.fileno()]) as vmm:
        assert eventually(lambda: bool(arrived(receiver)))
        processes = vmm.processes()
        assert [datagram_sockets(pid) for pid in processes.all()] == [0] * len(processes.all())
        vmm.signal(signal.SIGTERM)
        assert vmm.wait() == 0
