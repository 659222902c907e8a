# SPDX-License-Identifier: BSD-3-Clause
"""Cards whose process is killed: what the next one knows, and what becomes of frames."""

from __future__ import annotations

import fcntl
import socket
import struct
from typing import TYPE_CHECKING, Final, NamedTuple

import pytest

from devices.virtio.commands import SetLink
from devices.virtio.net.state import CardState
from devices.virtio.rate_limiter import RateLimits
from sys_util.tap import IFF_ATTACH_QUEUE, IFF_DETACH_QUEUE, TUNSETOFFLOAD, TUNSETQUEUE
from sys_util.unix_stream import FIONREAD, SO_PEEK_OFF
from tests.support.commands import limits_of
from tests.support.killed import each_kill, shared_state
from tests.support.net_rig import EVENT_IDX, MAC, PLAIN, Ioctls, NetRig, frame
from tests.support.stored import stored

if TYPE_CHECKING:
    from collections.abc import Iterator

OTHER_MAC = bytes.fromhex("525400abcdef")
TSO4 = 1 << 7
GUEST_CSUM = 1 << 1
HOUR_MS = 3_600_000

# Into buffers of this size some frames go alone and some in pieces; the longest are for a stream
# to take by themselves.
BUFFER_BYTES: Final = 700
LONG: Final = 17000
LENGTHS: Final = (60, 2000, LONG, 688, 62)


class Scene(NamedTuple):
    rig: NetRig
    ioctls: Ioctls
    lines: list[str]

    def restart(self, *attached: bool) -> None:
        """Kill the device; its TAP has these queues attached, if it has more than one."""
        self.ioctls.calls.clear()
        self.ioctls.attached = list(attached)
        self.rig.restart()


def started(
    monkeypatch: pytest.MonkeyPatch, lines: list[str], *, pairs: int = 1, tap: bool = True
) -> Iterator[Scene]:
    ioctls = Ioctls(monkeypatch)
    scene = Scene(NetRig(pairs=pairs, tap=tap), ioctls, lines)
    scene.rig.driver.start()
    yield scene
    scene.rig.close()


@pytest.fixture(params=[True, False], ids=["tap", "stream"])
def scene(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, lines: list[str]
) -> Iterator[Scene]:
    yield from started(monkeypatch, lines, tap=request.param)


@pytest.fixture
def tap_scene(monkeypatch: pytest.MonkeyPatch, lines: list[str]) -> Iterator[Scene]:
    yield from started(monkeypatch, lines)


@pytest.fixture
def scene_of_three(monkeypatch: pytest.MonkeyPatch, lines: list[str]) -> Iterator[Scene]:
    yield from started(monkeypatch, lines, pairs=3)


def test_restart_goes_on_with_every_queue(scene: Scene) -> None:
    rig = scene.rig
    rig.offer(2000, 2000)
    rig.send(PLAIN + frame(60))
    before = rig.sent()
    scene.restart()
    rig.send(PLAIN + frame(60))
    assert rig.sent() == before
    rig.host.send(before[0])
    rig.driver.context.fire(rig.end_fd)
    assert [data[12:] for data in rig.received()] == [frame(60)]
    assert rig.command(0, 0, b"\1") == 0
    assert rig.driver.interrupted(1)


def test_restart_keeps_the_address_and_the_wish_for_an_announcement(scene: Scene) -> None:
    rig = scene.rig
    rig.command(1, 1, OTHER_MAC)
    rig.driver.worker.resume()
    assert rig.config()[:2] == (OTHER_MAC, 3)
    scene.restart()
    assert rig.config()[:2] == (OTHER_MAC, 3)
    assert rig.command(3, 0) == 0
    scene.restart()
    assert rig.config()[:2] == (OTHER_MAC, 1)


def test_restart_keeps_the_link_down(scene: Scene) -> None:
    rig = scene.rig
    rig.offer(2000)
    rig.device.command(SetLink(up=False))
    scene.restart()
    assert rig.config()[1] == 0
    rig.send(PLAIN + frame(60))
    assert rig.sent() == []
    assert not rig.listens()
    rig.device.command(SetLink(up=True))
    assert rig.listens()


def test_restart_keeps_limits_that_were_changed(scene: Scene) -> None:
    rig = scene.rig
    told = limits_of(rig.device, ops_size=1, ops_refill_time=HOUR_MS)
    scene.restart()
    assert limits_of(rig.device) == told
    rig.send(PLAIN + frame(60))
    assert rig.sent() == []  # the guest gains no second bucket


def test_restart_counts_on(scene: Scene) -> None:
    rig = scene.rig
    rig.send(PLAIN + frame(60))
    scene.restart()
    rig.send(PLAIN + frame(60))
    assert rig.device.stats.tx_frames == 2


def test_restart_keeps_the_offloads(tap_scene: Scene) -> None:
    assert tap_scene.rig.command(5, 0, struct.pack("<Q", TSO4 | GUEST_CSUM)) == 0
    tap_scene.restart()
    assert (TUNSETOFFLOAD, 0b11) in tap_scene.ioctls.calls


def test_restart_of_many_queues_attaches_and_detaches_none(scene_of_three: Scene) -> None:
    rig, ioctls = scene_of_three.rig, scene_of_three.ioctls
    assert rig.command(4, 0, struct.pack("<H", 2), queue=6) == 0
    scene_of_three.restart(True, True, False)
    assert TUNSETQUEUE not in [request for request, _ in ioctls.calls]
    rig.offer(2000, queue=2)
    rig.hosts[1].send(PLAIN + frame(70))
    rig.driver.context.fire(rig.device.ends[1].fd)
    assert [data[12:] for data in rig.received(2)] == [frame(70)]
    rig.offer(2000, queue=4)
    assert rig.device.ends[2].fd not in rig.driver.context.fds


def test_restart_between_a_command_and_the_tap_sets_the_tap_right(scene_of_three: Scene) -> None:
    assert scene_of_three.rig.command(4, 0, struct.pack("<H", 2), queue=6) == 0
    scene_of_three.restart(True, False, True)
    calls = [
        argument for request, argument in scene_of_three.ioctls.calls if request == TUNSETQUEUE
    ]
    flags = (IFF_ATTACH_QUEUE, IFF_DETACH_QUEUE)
    assert calls == [struct.pack("=16xH22x", flag) for flag in flags]


def test_restart_after_a_reset_finds_no_driver(scene: Scene) -> None:
    rig = scene.rig
    rig.command(1, 1, OTHER_MAC)
    rig.device.command(SetLink(up=False))
    rig.driver.reset()
    scene.restart()
    assert rig.config()[:2] == (MAC, 0)


def test_driver_that_negotiates_otherwise_is_a_new_one(scene: Scene) -> None:
    rig = scene.rig
    rig.command(1, 1, OTHER_MAC)
    rig.driver.features ^= EVENT_IDX
    scene.restart()
    assert rig.config()[0] == MAC


def test_process_without_a_driver_learns_nothing(scene: Scene) -> None:
    assert scene.rig.config()[:2] == (MAC, 1)
    assert scene.lines == []


GOOD = {
    "link_up": True,
    "limits": [0] * 6,
    "features": TSO4,
    "mac": OTHER_MAC,
    "announce": False,
    "pairs": 1,
    "offloads": TSO4,
}


def test_saved_state_that_can_be_is_used(scene: Scene) -> None:
    state = CardState.unpack(dict(GOOD), scene.rig.spec)
    assert state == CardState(True, RateLimits(), TSO4, OTHER_MAC, False, 1, TSO4)
    assert CardState.unpack({**state.pack(), "limits": [0] * 6}, scene.rig.spec) == state


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("link_up", 1),
        ("link_up", None),
        ("limits", []),
        ("limits", [0] * 5),
        ("limits", [0] * 5 + [-1]),
        ("limits", [0] * 5 + [True]),
        ("limits", [0] * 5 + ["x"]),
        ("limits", [1 << 63] + [0] * 5),
        ("limits", [0, 1, 0, 0, 0, 0]),
        ("limits", {}),
        ("features", -1),
        ("features", 1.5),
        ("mac", b""),
        ("mac", bytes(7)),
        ("mac", "525400"),
        ("mac", b"\1\0\0\0\0\0"),
        ("announce", 0),
        ("pairs", 0),
        ("pairs", 2),
        ("pairs", True),
        ("pairs", (1 << 64) - 1),
        ("offloads", 1 << 7 | 1 << 8),
        ("offloads", 1),
        ("offloads", -1),
    ],
)
def test_saved_state_that_cannot_be_is_reported_and_left(
    scene: Scene, name: str, value: object
) -> None:
    rig = scene.rig
    rig.command(1, 1, OTHER_MAC)
    rig.driver.context.saved.store({**GOOD, name: value})
    scene.restart()
    assert rig.config()[:2] == (MAC, 1)
    assert scene.lines == [f"saved state is not used: {name}"]
    rig.send(PLAIN + frame(60))
    assert len(rig.sent()) == 1


@pytest.mark.parametrize("name", [*GOOD, "more"])
def test_saved_state_with_a_field_too_few_or_too_many_is_left(scene: Scene, name: str) -> None:
    names = {*GOOD} ^ {name}
    scene.rig.driver.context.saved.store({key: GOOD.get(key, 1) for key in names})
    scene.restart()
    assert scene.lines == ["saved state is not used: fields"]


class Traffic(NetRig):
    """A card whose processes come and go, with frames on either side."""

    def __init__(self, *, tap: bool) -> None:
        super().__init__(tap=tap, saved=shared_state())
        self.tap = tap
        self.driver.start(0, 1, size=256)
        self.driver.start_queue(2)

    def wire(self, data: bytes) -> bytes:
        return PLAIN + data if self.tap else struct.pack(">I", len(data)) + data

    def take_over(self) -> None:
        self.restart()

    def seen(self) -> object:
        """Return the rings, the state, and how far either side of the network has come."""
        waiting = [self._waiting(sock) for sock in (self.host, self.ends[0])]
        offset = 0 if self.tap else self.ends[0].getsockopt(socket.SOL_SOCKET, SO_PEEK_OFF)
        return (self.driver.seen(), waiting, offset)

    def _waiting(self, sock: socket.socket) -> int:
        count: int = struct.unpack("i", fcntl.ioctl(sock.fileno(), FIONREAD, bytes(4)))[0]
        return count

    def arrived(self) -> list[bytes]:
        """Return the frames that the driver got, joined of their buffers."""
        pieces, frames = self.received(), []
        while pieces:
            count = int.from_bytes(pieces[0][10:12], "little")
            assert 1 <= count <= len(pieces)
            frames.append(b"".join(pieces[:count])[12:])
            del pieces[:count]
        return frames

    def left(self) -> list[bytes]:
        """Return the frames that the host got."""
        found = self.sent()
        if self.tap:
            return [data[12:] for data in found]
        stream, frames = b"".join(found), []
        while stream:
            (length,) = struct.unpack_from(">I", stream)
            frames.append(stream[4 : 4 + length])
            assert len(frames[-1]) == length
            stream = stream[4 + length :]
        return frames


@pytest.fixture(params=[True, False], ids=["tap", "stream"])
def is_tap(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, lines: list[str]
) -> Iterator[bool]:
    Ioctls(monkeypatch)
    yield request.param
    assert lines == []


@pytest.mark.usefixtures("fake_calls")
def test_killed_while_it_receives_it_breaks_no_frame(*, is_tap: bool) -> None:
    frames = [frame(length, seed) for seed, length in enumerate(LENGTHS)]

    def make() -> Traffic:
        traffic = Traffic(tap=is_tap)
        for data in frames:
            traffic.host.send(traffic.wire(data))
        for _ in range(60):
            traffic.driver.queues[0].submit([], [BUFFER_BYTES])
        return traffic

    for traffic in each_kill(make, lambda traffic: traffic.driver.kick(0)):
        before = traffic.arrived()
        traffic.take_over()
        traffic.host.send(traffic.wire(frame(63, 99)))
        traffic.driver.kick(0)
        after = traffic.arrived()
        assert after.pop() == frame(63, 99)
        for arrived in (before, after):
            assert arrived == [data for data in frames if data in arrived]
        if not is_tap:  # where only data that will be repeated may be lost
            assert {*frames} - {*before, *after} <= {frames[LENGTHS.index(LONG)]}


@pytest.mark.usefixtures("fake_calls")
def test_killed_while_it_sends_it_repeats_frames_and_loses_none(*, is_tap: bool) -> None:
    frames = [frame(length, seed) for seed, length in enumerate(LENGTHS)]

    def make() -> Traffic:
        traffic = Traffic(tap=is_tap)
        for data in frames:
            traffic.driver.queues[1].submit([PLAIN, data])
        return traffic

    for traffic in each_kill(make, lambda traffic: traffic.driver.kick(1)):
        traffic.take_over()
        left = traffic.left()
        repeated = len(left) - len(frames)
        assert left == frames[:repeated] + frames
        assert len(traffic.driver.queues[1].collect()) == len(frames)
        assert traffic.driver.interrupted(1)


def test_killed_while_it_is_told_it_knows_in_the_end(*, is_tap: bool) -> None:
    commands = [
        struct.pack("<BB", 1, 1) + OTHER_MAC,
        b"\0\0\1",
        b"\3\0",
        *([struct.pack("<BBQ", 5, 0, TSO4 | GUEST_CSUM)] if is_tap else []),
        b"\7\7",
    ]

    def make() -> Traffic:
        traffic = Traffic(tap=is_tap)
        traffic.driver.worker.resume()
        for data in commands:
            traffic.driver.queues[2].submit([data], [1])
        return traffic

    for traffic in each_kill(make, lambda traffic: traffic.driver.kick(2)):
        traffic.take_over()
        acks = [data for _, _, data in traffic.driver.queues[2].collect()]
        assert acks == [b"\0"] * (len(commands) - 1) + [b"\1"]
        assert traffic.config()[:2] == (OTHER_MAC, 1)
        state = CardState.unpack(_stored(traffic), traffic.spec)
        assert state.offloads == (TSO4 | GUEST_CSUM if is_tap else 0)


def _stored(traffic: Traffic) -> dict[str, object]:
    fields = stored(traffic.driver.context.saved)
    assert fields is not None
    return fields
