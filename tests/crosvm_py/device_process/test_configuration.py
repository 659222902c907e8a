# SPDX-License-Identifier: BSD-3-Clause
"""What a driver's command changed is known to the vmm before the command is seen as used."""

from __future__ import annotations

import socket
import struct
from typing import TYPE_CHECKING

import pytest

from crosvm_py.device_process import protocol
from crosvm_py.device_process.configuration import MOST_WAIT_SECONDS, Configuration
from crosvm_py.kinds.order import DeviceOrder, pack_spec
from devices.virtio.commands import SetLink
from devices.virtio.net.state import NetSpec
from tests.crosvm_py import device_rig
from tests.support.net_rig import MAC, PLAIN, NetRig, frame

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sys_util.wire import Message

CONTROL = 2
SET_MAC = (1, 1)


def mac(seed: int) -> bytes:
    return b"\x52\x54\x00\x00" + struct.pack(">H", seed)


class Scene:
    """A card whose vmm answers when the test says so."""

    def __init__(self) -> None:
        self.rig = NetRig(tap=False)
        self.driver = self.rig.driver
        self.said: list[Message] = []
        context = self.driver.context
        self.known = Configuration(
            self.rig.device,
            self.driver.worker,
            context,  # type: ignore[arg-type]  # has the timers of a loop
            self.said.append,
            self._serve_again,
        )
        self.known.ready()
        context.config_changed = self.known.changed  # type: ignore[method-assign]  # as its process
        self.driver.start(size=16)

    def _serve_again(self) -> None:
        for queue in self.driver.queues:
            self.driver.kick(queue)

    def set_mac(self, address: bytes) -> None:
        """Send the command, and serve it."""
        self.driver.queues[CONTROL].submit([struct.pack("<BB", *SET_MAC), address], [1])
        self.driver.kick(CONTROL)

    def used(self, queue: int = CONTROL) -> int:
        """Return how many chains the driver sees as used now."""
        return len(self.driver.queues[queue].collect())

    def numbers(self) -> list[int]:
        return [said.number for said in self.said if isinstance(said, protocol.ConfigChanged)]


@pytest.fixture
def scene(lines: list[str]) -> Iterator[Scene]:
    scene = Scene()
    yield scene
    scene.rig.close()


def test_command_is_used_once_the_vmm_knows_its_effect(scene: Scene) -> None:
    scene.driver.interrupted(CONTROL)
    scene.set_mac(mac(1))
    (said,) = scene.said
    assert isinstance(said, protocol.ConfigChanged)
    assert said.config[:6] == mac(1)
    assert scene.used() == 0
    assert not scene.driver.interrupted(CONTROL)
    scene.known.taken(said.number)
    assert scene.used() == 1
    assert scene.driver.interrupted(CONTROL)


def test_command_that_changes_nothing_is_used_at_once(scene: Scene) -> None:
    scene.set_mac(MAC)
    assert scene.said == []
    assert scene.used() == 1


def test_commands_wait_for_the_last_change(scene: Scene) -> None:
    scene.set_mac(mac(1))
    scene.rig.device.command(SetLink(up=False))
    first, second = scene.numbers()
    scene.known.taken(first)
    assert scene.used() == 0
    scene.known.taken(second)
    assert scene.used() == 1
    scene.known.taken(second)
    scene.set_mac(mac(3))
    assert scene.used() == 0


def test_next_command_is_taken_after_the_effect_of_the_last(scene: Scene) -> None:
    scene.set_mac(mac(1))
    scene.set_mac(mac(2))
    assert scene.numbers() == [1]
    scene.known.taken(1)
    assert scene.numbers() == [1, 2]
    assert scene.used() == 1
    scene.known.taken(2)
    assert scene.used() == 1


def test_other_queues_wait_too_and_lose_nothing(scene: Scene) -> None:
    scene.set_mac(mac(1))
    scene.rig.offer(2000)
    scene.rig.host.send(struct.pack(">I", 60) + frame(60))
    if scene.rig.listens():
        scene.driver.context.fire(scene.rig.end_fd)
    scene.rig.send(PLAIN + frame(61))
    assert (scene.used(0), scene.used(1)) == (0, 0)
    scene.known.taken(1)
    assert (scene.used(0), scene.used(1), scene.used()) == (1, 1, 1)


def test_vmm_that_does_not_answer_holds_a_command_up_for_a_while(scene: Scene) -> None:
    done: list[int] = []
    scene.set_mac(mac(1))
    scene.known.when_known(lambda: done.append(1))
    scene.driver.context.advance(MOST_WAIT_SECONDS / 2)
    assert (scene.used(), done) == (0, [])
    scene.driver.context.advance(MOST_WAIT_SECONDS)
    assert (scene.used(), done) == (1, [1])
    scene.known.taken(1)  # late


def test_requests_are_answered_in_order_after_what_they_follow(scene: Scene) -> None:
    done: list[int] = []
    scene.known.when_known(lambda: done.append(0))
    assert done == [0]
    scene.set_mac(mac(1))
    scene.known.when_known(lambda: done.append(1))
    scene.known.when_known(lambda: done.append(2))
    assert done == [0]
    scene.known.taken(1)
    assert done == [0, 1, 2]


def test_reset_forgets_what_was_withheld(scene: Scene) -> None:
    scene.set_mac(mac(1))
    scene.known.change(scene.driver.reset)
    scene.driver.start(size=16)
    scene.set_mac(mac(2))
    assert scene.used() == 0
    for used in (0, 1):  # the reset, the command
        scene.known.taken(scene.numbers()[-1])
        assert scene.used() == used


def test_next_process_carries_out_again_what_was_withheld(scene: Scene) -> None:
    scene.set_mac(mac(1))
    scene.rig.restart()
    assert scene.used() == 1
    assert scene.rig.config()[0] == mac(1)


def test_number_comes_round(scene: Scene) -> None:
    scene.known._number = 0xFFFF_FFFF
    scene.set_mac(mac(1))
    assert scene.numbers() == [1]


def test_real_process_never_shows_a_command_before_its_effect(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(device_rig, "FEATURES", device_rig.FEATURES | 1 << 17 | 1 << 23)
    network, end = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    spec = pack_spec(NetSpec(MAC, 1500, tap=False))
    with network, device_rig.DeviceRig(sandbox=False) as rig:
        device = rig.start(DeviceOrder("net:0", "net", spec, (end.detach(),), 0))
        control = rig.activate(device, queues=3)[CONTROL]
        for seed in range(60):
            control.submit([struct.pack("<BB", *SET_MAC), mac(seed)], [1])
            rig.until(lambda: bool(control.ring.collect()))
            assert device.config[:6] == mac(seed)
