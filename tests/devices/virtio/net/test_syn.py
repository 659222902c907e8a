# SPDX-License-Identifier: BSD-3-Clause
"""The frame that user-mode networking must not see twice: passt resets a connection for it."""

from __future__ import annotations

import socket
import struct
from typing import TYPE_CHECKING, Final

import pytest

from devices.virtio.net.stream import StreamEnd
from sys_util.event_loop import EPOLLOUT
from tests.devices.virtio.net.test_restart import Traffic
from tests.support.killed import each_kill
from tests.support.net_rig import PLAIN, Ioctls, frame

if TYPE_CHECKING:
    from collections.abc import Iterator

SYN, ACK = 2, 16
TCP, UDP = 6, 17
ADDRESSES: Final = bytes(12)
OPTIONS: Final = bytes.fromhex("020405b401030307")


def tcp(flags: int, options: bytes = OPTIONS) -> bytes:
    words = 5 + len(options) // 4
    return struct.pack(">HHIIBBHHH", 40000, 5001, 1, 0, words << 4, flags, 64000, 0, 0) + options


def over_ipv4(segment: bytes, options: bytes = b"", protocol: int = TCP) -> bytes:
    head = bytes([0x45 + len(options) // 4, 0, *bytes(7), protocol]) + bytes(10) + options
    return ADDRESSES + b"\x08\x00" + head + segment


def over_ipv6(segment: bytes, protocol: int = TCP) -> bytes:
    return ADDRESSES + b"\x86\xdd" + bytes([0x60, *bytes(5), protocol, 64]) + bytes(32) + segment


@pytest.fixture
def end() -> Iterator[StreamEnd]:
    ours, theirs = socket.socketpair()
    end = StreamEnd(ours.detach())
    yield end
    end.close()
    theirs.close()


@pytest.mark.parametrize(
    ("data", "once"),
    [
        pytest.param(over_ipv4(tcp(SYN)), True, id="ipv4"),
        pytest.param(over_ipv4(tcp(SYN | ACK)), True, id="answer"),
        pytest.param(over_ipv4(tcp(SYN, bytes(40)), bytes(40)), True, id="all options"),
        pytest.param(over_ipv6(tcp(SYN)), True, id="ipv6"),
        pytest.param(over_ipv4(tcp(ACK)), False, id="ack"),
        pytest.param(over_ipv6(tcp(ACK)), False, id="ipv6 ack"),
        pytest.param(over_ipv4(tcp(SYN), protocol=UDP), False, id="udp"),
        pytest.param(over_ipv6(tcp(SYN), protocol=UDP), False, id="ipv6 udp"),
        pytest.param(over_ipv4(tcp(SYN))[:53], False, id="cut short"),
        pytest.param(over_ipv6(tcp(SYN))[:73], False, id="ipv6 cut short"),
        pytest.param(over_ipv4(tcp(SYN), bytes(40))[:60], False, id="cut before tcp"),
        pytest.param(over_ipv4(tcp(SYN)) + bytes(100), False, id="long"),
        pytest.param(bytes(12) + b"\x08\x00", False, id="no more"),
        pytest.param(bytes(12) + b"\x86\xdd", False, id="ipv6 no more"),
        pytest.param(frame(60), False, id="arp, say"),
        pytest.param(b"", False, id="nothing"),
    ],
)
def test_only_what_opens_a_connection_comes_once(
    end: StreamEnd, data: bytes, *, once: bool
) -> None:
    assert end.may_repeat([memoryview(data)]) is not once
    assert end.may_repeat([memoryview(data[:20]), memoryview(data[20:])]) is not once


FRAMES: Final = (
    *(frame(60, 1), over_ipv4(tcp(SYN)), frame(62, 2), frame(2000, 3)),
    *(over_ipv6(tcp(SYN)), over_ipv6(tcp(SYN, b"")), frame(64, 4)),
)


def test_killed_sender_repeats_frames_and_no_syn(monkeypatch: pytest.MonkeyPatch) -> None:
    Ioctls(monkeypatch)

    def make() -> Traffic:
        traffic = Traffic(tap=False)
        for data in FRAMES:
            traffic.driver.queues[1].submit([PLAIN, data])
        return traffic

    repeated = lost = 0
    for traffic in each_kill(make, lambda traffic: traffic.driver.kick(1)):
        traffic.take_over()
        left = traffic.left()
        for data in FRAMES:
            count = left.count(data)
            if b"\x08\x00" in data[12:14] or b"\x86\xdd" in data[12:14]:
                assert count <= 1
                lost += count == 0
            else:
                assert count >= 1
                repeated += count > 1
        assert len(traffic.driver.queues[1].collect()) == len(FRAMES)
        assert traffic.driver.interrupted(1)
    assert repeated > 1
    assert lost > 1


def test_syn_that_waits_for_room_outlives_a_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    Ioctls(monkeypatch)
    traffic = Traffic(tap=False)
    sent: list[bytes] = []
    while EPOLLOUT & traffic.driver.context.fds.get(traffic.end_fd, (None, 0))[1] == 0:
        sent.append(over_ipv4(tcp(SYN, struct.pack(">Q", len(sent)))))
        traffic.send(PLAIN + sent[-1])
        assert traffic.driver.queues[1].collect()  # the last one, too, which waits
    traffic.driver.worker.pause()
    state = traffic.driver.worker.states()[1]
    assert state.next_avail == state.next_used
    traffic.driver.worker.resume()
    arrived = traffic.left()
    traffic.driver.context.fire(traffic.end_fd, EPOLLOUT)
    assert arrived + traffic.left() == sent
    traffic.close()
