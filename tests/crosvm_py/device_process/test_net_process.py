# SPDX-License-Identifier: BSD-3-Clause
"""A card in its jail, on a socket as passt's, whose process is killed again and again."""

from __future__ import annotations

import os
import signal
import socket
from typing import TYPE_CHECKING

import pytest

from crosvm_py.care import Care
from crosvm_py.kinds.order import DeviceOrder, pack_spec
from devices.virtio.commands import Obeyed, SetLink
from devices.virtio.net.state import NetSpec
from sys_util.wire import Message
from tests.crosvm_py.device_rig import DeviceRig, Transport
from tests.support.net_rig import MAC, PLAIN, frame, on_wire

if TYPE_CHECKING:
    from collections.abc import Iterator

    from crosvm_py.vmm.device_proxy import DeviceProcess

pytestmark = [pytest.mark.root, pytest.mark.slow]

# Longer than what the device looks at, so that it is read into guest memory itself.
LONG = frame(20000)
SHORT = frame(60, 1)


class Card:
    """The driver's and the network's side of the card."""

    def __init__(self, rig: DeviceRig) -> None:
        self.rig = rig
        self.network, ours = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        spec = NetSpec(MAC, 65520, tap=False)
        order = DeviceOrder("net:0", "net", pack_spec(spec), (ours.detach(),), 0)
        self.device: DeviceProcess = rig.start(order)
        self.receiveq, self.transmitq = queues = rig.activate(self.device, queues=2)
        self.device.events = Transport(queues)
        self.receiveq.submit([], [30000])

    def kill(self) -> None:
        """Kill the process and wait until the next one serves."""
        before = self.device.status.restarts
        os.kill(self.device.pid, signal.SIGKILL)
        self.rig.until(lambda: self.device.status.restarts > before and self.device.status.ready)

    def receive(self) -> bytes:
        """Return the next frame that arrives, and offer its buffer again."""
        found: list[bytes] = []

        def arrived() -> bool:
            found.extend(data[12:used] for _, used, data in self.receiveq.ring.collect())
            return bool(found)

        self.rig.until(arrived)
        self.receiveq.submit([], [30000])
        return found[0]

    def send(self, data: bytes) -> None:
        """Send a frame, see it arrive and wait until it is used: it will not be sent again."""
        self.transmitq.submit([PLAIN + data], [])
        got = self.network.recv(4 + len(data), socket.MSG_WAITALL)
        assert got == on_wire(data)
        self.rig.until(lambda: bool(self.transmitq.ring.collect()))


@pytest.fixture
def card() -> Iterator[Card]:
    with DeviceRig(sandbox=True, care=Care()) as rig:
        card = Card(rig)
        yield card
        assert not any("seccomp" in line for line in rig.lines), rig.lines
        card.network.close()


def test_killed_between_frames_goes_on(card: Card) -> None:
    for seed in range(4):
        card.network.sendall(on_wire(LONG) + on_wire(frame(70, seed)))
        assert [card.receive(), card.receive()] == [LONG, frame(70, seed)]
        card.send(frame(40000, seed))
        card.kill()
    assert card.device.cells[0] >= 12  # and counts on


def test_killed_in_the_midst_of_a_frame_loses_at_most_that(card: Card) -> None:
    for _ in range(4):
        card.network.sendall(on_wire(LONG)[:9000])
        card.kill()
        card.network.sendall(on_wire(LONG)[9000:] + on_wire(SHORT))
        got = card.receive()
        assert got in (LONG, SHORT)
        assert got == SHORT or card.receive() == SHORT


def test_killed_with_the_link_down_stays_down(card: Card) -> None:
    done: list[Message] = []
    card.device.command(SetLink(up=False), done.append)
    card.rig.until(lambda: bool(done))
    assert done == [Obeyed()]
    down = card.device.config
    card.kill()
    assert card.device.config == down
    assert down[6] == 0
