# SPDX-License-Identifier: BSD-3-Clause
"""A vCPU and the loop use one channel: the loop closes it only when the vCPU has sent."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Final

import pytest

from crosvm_py.device_process import protocol
from crosvm_py.kinds.rng import RNG
from crosvm_py.vmm.device_proxy import DeviceProcess
from sys_util.channel import Channel, socket_pair
from sys_util.event_loop import EventLoop
from sys_util.wire import encode
from tests.crosvm_py.hostile_device import READY
from tests.endurance.storm import run_storm

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from sys_util.wire import Message


# Of each storm; `python -m tests.endurance storm` has thousands.
KILLS: Final = 60


class NotedLock:
    """A lock that tells when the loop wants it."""

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._processor = threading.get_ident()
        self.loop_moves = threading.Event()

    def __enter__(self) -> bool:
        if threading.get_ident() != self._processor:
            self.loop_moves.set()
        return self._lock.__enter__()

    def __exit__(self, *error: object) -> None:
        self._lock.release()


class Rig:
    """A device that is ready, whose loop acts while a vCPU sends a message."""

    def __init__(self) -> None:
        self.lock = NotedLock()
        self.loop = EventLoop()
        self.device = DeviceProcess(0, "rng", RNG, self.loop, self.lock)
        ours, self.theirs = socket_pair()
        self.device.attach(ours)
        self.theirs.send(encode(READY))
        self.loop.run_once(0)
        self.lock.loop_moves.clear()
        self.channel = Channel(self.theirs, protocol.DEVICE_CODEC)

    def send_while(self, act: Callable[[], None], monkeypatch: pytest.MonkeyPatch) -> None:
        """Have a vCPU write, and have the loop ``act`` before the message is sent."""
        moves, send = self.lock.loop_moves, Channel.send

        def acting() -> None:
            act()
            moves.set()  # it did not even want the lock

        loop = threading.Thread(target=acting)

        def send_late(channel: Channel, message: Message, fds: Sequence[int] = ()) -> None:
            if isinstance(message, protocol.WriteConfig):
                loop.start()
                moves.wait()
            send(channel, message, fds)

        monkeypatch.setattr(Channel, "send", send_late)
        with self.lock:
            self.device.write_config(4, b"last")
        loop.join()

    def received(self) -> list[Message]:
        found = []
        while (received := self.channel.receive()) is not None:
            found.append(received[0])
        return found


@pytest.fixture
def rig() -> Iterator[Rig]:
    rig = Rig()
    yield rig
    rig.device.close()
    rig.theirs.close()
    rig.loop.close()


@pytest.mark.parametrize("end", ["close", "fail"])
def test_channel_is_closed_after_what_a_processor_sends(
    rig: Rig, end: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    acts = {"close": rig.device.close, "fail": lambda: rig.device.fail("it lies")}
    rig.send_while(acts[end], monkeypatch)
    assert not rig.device.is_open
    received = rig.channel.receive()
    assert received is not None
    assert received[0] == protocol.WriteConfig(1, (protocol.ConfigWrite(4, b"last"),))


def test_request_of_the_loop_comes_after_what_a_processor_sends(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    rig.send_while(lambda: rig.device.finish(lambda: None), monkeypatch)
    write = protocol.ConfigWrite(4, b"last")
    assert rig.received() == [protocol.WriteConfig(1, (write,)), protocol.Pause(2)]


@pytest.mark.slow
@pytest.mark.parametrize("seed", [3, 4])
def test_guest_that_never_rests_survives_the_end_of_every_process(
    seed: int, tmp_path: Path
) -> None:
    result = run_storm(KILLS, seed, tmp_path, progress=False)
    assert result.wrong == []
    assert result.kills == KILLS
