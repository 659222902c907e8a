# SPDX-License-Identifier: BSD-3-Clause
"""A passt that gets out of step: no frame is made up, and the network comes back by itself."""

from __future__ import annotations

import os
import random
import socket
import struct
from contextlib import suppress
from typing import TYPE_CHECKING

import pytest

from devices.virtio.net.framing import FRAME, LOST, UNKNOWN, judge
from devices.virtio.net.stream import StreamEnd
from tests.support.net_rig import EVENT_IDX, MAC, PLAIN, NetRig, frame, ip_frame, on_wire

if TYPE_CHECKING:
    from collections.abc import Iterator

ARP = MAC + bytes.fromhex("52550a0002020806") + bytes(28)
PADDED_ARP = ARP + bytes(18)
IP6 = MAC + bytes.fromhex("52550a00020286dd") + struct.pack(">IHBB", 6 << 28, 32, 58, 255)
IP6 += bytes(64)
WRONG_IP = ip_frame(100) + b"more than the packet says"
GOOD = [ip_frame(34), ip_frame(1514), ip_frame(20_000), ip_frame(65_549), ARP, PADDED_ARP, IP6]
# What no frame can begin with.
NONSENSE = [
    pytest.param(struct.pack(">I", 65551) + bytes(100), id="longer than any frame"),
    pytest.param(struct.pack(">I", 0xFFFFFFFF), id="four gigabytes"),
    pytest.param(b"GET / HTTP/1.1\r\n" * 9, id="text"),
    pytest.param(on_wire(WRONG_IP), id="another length"),
    pytest.param(on_wire(ip_frame(200))[:150] + on_wire(ip_frame(300)), id="a frame cut short"),
]


class Passt:
    """The far side of a card's stream, which sends as passt does."""

    def __init__(self, rig: NetRig) -> None:
        self.rig = rig
        self.torn = 0  # lengths that went alone
        self._buffers = 0  # that the device has

    def tap_send(self, data: bytes) -> bool:
        """Send a length and its frame if there is room for it; return whether both went."""
        sent = 0
        with suppress(BlockingIOError):
            sent += self.rig.host.send(struct.pack(">I", len(data)))
            sent += self.rig.host.send(data)
        self.torn += sent == 4
        return sent > 4

    def deliver(self) -> list[bytes]:
        """Let the device take what is here; return what the driver got."""
        rig, got = self.rig, []
        while True:
            rig.offer(*[70000] * (12 - self._buffers))
            if rig.listens():
                rig.driver.context.fire(rig.end_fd)
            frames = [data[12:] for data in rig.received()]
            self._buffers = 12 - len(frames)
            got += frames
            if not frames:
                return got


@pytest.fixture
def passt(lines: list[str]) -> Iterator[Passt]:
    rig = NetRig(tap=False, without=EVENT_IDX)
    rig.driver.start(0, 1, size=16)
    yield Passt(rig)
    rig.close()


def test_flood_into_a_full_socket_costs_only_what_had_no_room(passt: Passt) -> None:
    choose = random.Random(1)
    got, sent = [], []
    for turn in range(24):
        for number in range(400):
            data = choose.choice((ip_frame(choose.randrange(34, 1500), number), ARP, IP6))
            if passt.tap_send(data):
                sent.append(data)
        got += passt.deliver()
        marker = ip_frame(99, 5000 + turn)
        assert passt.tap_send(marker)
        sent.append(marker)
        got += passt.deliver()
        assert got[-1] == marker
    assert got == sent
    assert passt.torn
    assert passt.rig.config()[1] == 1


@pytest.mark.parametrize("data", GOOD, ids=lambda data: f"{len(data)}")
@pytest.mark.parametrize("lengths", [1, 2, 5, 40])
@pytest.mark.parametrize("at", [0, 1, 2, 3])
def test_lengths_without_frames_are_skipped(
    passt: Passt, data: bytes, lengths: int, at: int
) -> None:
    wire = struct.pack(">I", 342) * lengths + on_wire(data) + on_wire(ip_frame(60, 1))
    cut = (0, 4, 4 * lengths, 4 * lengths + 20)[at]
    passt.rig.host.send(wire[:cut]) if cut else None
    got = passt.deliver()
    passt.rig.host.setblocking(True)
    passt.rig.host.sendall(wire[cut:])
    assert got + passt.deliver() == [data, ip_frame(60, 1)]


def test_every_byte_alone_is_enough(passt: Passt) -> None:
    wire = struct.pack(">III", 342, 42, 66) + on_wire(ARP) + on_wire(ip_frame(60))
    got = []
    for at in range(len(wire)):
        passt.rig.host.send(wire[at : at + 1])
        got += passt.deliver()
    assert got == [ARP, ip_frame(60)]


@pytest.mark.parametrize("word", [b"\xff\xff\xff\xff", bytes(4), b"\0\0\0\x0e", b"RT\0\0"])
def test_lengths_and_then_none_are_dropped(passt: Passt, word: bytes) -> None:
    wire = struct.pack(">I", 42) * 7 + word + b"RT" * 11
    for at in range(len(wire)):
        passt.rig.host.send(wire[at : at + 1])
        assert passt.deliver() == []
    for seed in range(3):
        assert passt.tap_send(ip_frame(600, seed))
        got = passt.deliver()
    assert got == [ip_frame(600, 2)]
    assert passt.rig.config()[1] == 1


@pytest.mark.parametrize("nonsense", NONSENSE)
def test_nonsense_is_dropped_until_a_frame_fits(passt: Passt, nonsense: bytes) -> None:
    passt.rig.host.send(on_wire(ip_frame(60)) + nonsense + on_wire(ip_frame(61)))
    got = passt.deliver()
    assert got[0] == ip_frame(60)
    assert got[1:] in ([], [(on_wire(ip_frame(200))[:150] + on_wire(ip_frame(300)))[4:204]])
    assert passt.deliver() == []
    passt.rig.host.send(b"still not in step" * 3)
    assert passt.deliver() == []
    for data in GOOD[:2]:
        assert passt.tap_send(data)
        assert passt.deliver() == [data]
    assert passt.rig.config()[1] == 1


def test_nonsense_without_an_end_takes_one_turn_after_another(passt: Passt) -> None:
    passt.rig.offer(2000)
    with suppress(BlockingIOError):
        while True:
            passt.rig.host.send(b"nonsense" * 512)
    passt.rig.driver.context.fire(passt.rig.end_fd)
    assert passt.rig.listens()
    assert passt.rig.received() == []


def test_next_process_finds_its_place_again() -> None:
    peer, ours = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    room = memoryview(bytearray(70000))
    with peer, ours:
        peer.sendall(struct.pack(">I", 1000))
        for _ in range(3):
            end = StreamEnd(os.dup(ours.fileno()))
            with suppress(BlockingIOError):
                end.receive([room])
            end.close()
            peer.sendall(on_wire(ip_frame(60)))
        peer.sendall(on_wire(ip_frame(800)) * 3)
        end = StreamEnd(os.dup(ours.fileno()))
        for _ in range(9):
            with suppress(BlockingIOError):
                end.receive([room])
            end.commit()
        peer.sendall(on_wire(ip_frame(777)))
        assert room[12 : end.receive([room])] == ip_frame(777)
        end.close()


@pytest.mark.parametrize(
    ("data", "strict", "verdict"),
    [
        pytest.param(on_wire(ARP), True, FRAME, id="arp"),
        pytest.param(on_wire(frame(60)), False, FRAME, id="unknown kind"),
        pytest.param(on_wire(frame(60)), True, LOST, id="unknown kind, strict"),
        pytest.param(on_wire(ip_frame(600))[:23], False, UNKNOWN, id="too little"),
        pytest.param(struct.pack(">I", 342) * 6, True, UNKNOWN, id="lengths alone"),
        pytest.param(struct.pack(">I", 42) + on_wire(ARP), False, 4, id="one length"),
        pytest.param(on_wire(WRONG_IP), False, LOST, id="another length"),
        pytest.param(on_wire(b"abc"), False, FRAME, id="short frame, which nobody gets"),
    ],
)
def test_judge(data: bytes, strict: bool, verdict: int) -> None:
    assert judge(memoryview(data), 0, len(data), strict=strict) == verdict


def test_send_that_the_host_has_no_memory_for_costs_one_frame(
    passt: Passt, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> int:
        raise OSError(105, "No buffer space available")

    with monkeypatch.context() as patch:
        patch.setattr(os, "writev", fail)
        passt.rig.send(PLAIN + ip_frame(60))
    passt.rig.send(PLAIN + ip_frame(61))
    assert passt.rig.sent() == [on_wire(ip_frame(61))]
    assert passt.rig.device.stats.tx_dropped == 1
