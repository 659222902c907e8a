# SPDX-License-Identifier: BSD-3-Clause
"""A vsock device and its broker: in which order it asks, and what it makes of any answer."""

from __future__ import annotations

import array
import errno
import os
import socket
from collections.abc import Callable

import msgpack
import pytest

from devices.virtio.vsock import attempts as vsock_attempts
from devices.virtio.vsock.attempts import ATTEMPT_TICKS, BROKER_TICKS, TICK_SECONDS
from devices.virtio.vsock.broker import (
    BROKER_DENIED_HEAD,
    BrokerDenied,
    BrokerFailed,
    Connected,
    NotConnected,
)
from sys_util.errors import VmmError
from sys_util.log import get_logger
from sys_util.wire import encode
from tests.support.vsock_rig import REQUEST, RESPONSE, RST, VsockRig, closed

pytestmark = pytest.mark.usefixtures("steady_fds")

TIMEOUT = TICK_SECONDS * ATTEMPT_TICKS


class Mute:
    """A broker in the place of the rig's, which says only what the test has it say."""

    def __init__(self, vsock: VsockRig) -> None:
        self.sock = vsock.broker.channel._sock
        vsock.serve_broker = lambda: False  # type: ignore[method-assign]  # this rig's alone

    def questions(self) -> list[object]:
        """Return what was asked since the last call."""
        found: list[object] = []
        while True:
            try:
                found.append(msgpack.unpackb(self.sock.recv(1000)))
            except BlockingIOError:
                return found

    def say(self, payload: bytes, *fds: int) -> None:
        rights = array.array("i", fds)
        self.sock.sendmsg(
            [payload], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, rights)] if fds else []
        )

    def connect(self) -> socket.socket:
        """Answer with a connected socket; return the other end."""
        ours, theirs = socket.socketpair()
        with theirs:
            self.say(encode(Connected()), theirs.fileno())
        ours.setblocking(False)
        return ours


@pytest.fixture
def mute(vsock: VsockRig) -> Mute:
    return Mute(vsock)


# Order


def test_one_question_at_a_time_in_the_order_of_the_requests(vsock: VsockRig, mute: Mute) -> None:
    for port in (5, 6, 7):
        vsock.send(REQUEST, dst_port=port)
    assert mute.questions() == [[1, 5, False]]
    ends = [mute.connect()]
    vsock.settle()
    assert mute.questions() == [[1, 6, False]]
    mute.say(encode(NotConnected(errno.ENOENT)))
    vsock.settle()
    assert mute.questions() == [[1, 7, False]]
    ends.append(mute.connect())
    assert [(packet.op, packet.src_port) for packet in vsock.packets()] == [
        (RESPONSE, 5),
        (RST, 6),
        (RESPONSE, 7),
    ]
    for end in ends:
        end.close()


def test_full_backlog_holds_up_no_other_port(vsock: VsockRig, mute: Mute) -> None:
    for src_port in (1, 2, 3):
        vsock.send(REQUEST, dst_port=5, src_port=src_port)
    vsock.send(REQUEST, dst_port=6)
    assert mute.questions() == [[1, 5, False]]
    mute.say(encode(NotConnected(errno.EAGAIN)))
    vsock.settle()
    assert mute.questions() == [[1, 6, False]]
    mute.say(encode(NotConnected(errno.EAGAIN)))
    vsock.settle()
    assert mute.questions() == []
    vsock.pass_time(TICK_SECONDS)
    assert mute.questions() == [[1, 5, False]]
    ends = [mute.connect()]
    vsock.settle()
    assert mute.questions() == [[1, 6, False]]
    mute.say(encode(NotConnected(errno.EAGAIN)))
    vsock.settle()
    assert mute.questions() == [[1, 5, False]]  # who waited behind the first, in the same tick
    ends.append(mute.connect())
    assert [packet.dst_port for packet in vsock.packets()] == [1, 2]
    for end in ends:
        end.close()


def test_first_of_a_full_backlog_may_give_up(vsock: VsockRig, mute: Mute) -> None:
    for src_port in (1, 2):
        vsock.send(REQUEST, dst_port=5, src_port=src_port)
    mute.questions()
    mute.say(encode(NotConnected(errno.EAGAIN)))
    vsock.settle()
    vsock.send(RST, dst_port=5, src_port=1)
    vsock.pass_time(TICK_SECONDS)
    assert mute.questions() == [[1, 5, False]]
    with mute.connect():
        assert [(packet.op, packet.dst_port) for packet in vsock.packets()] == [(RESPONSE, 2)]


# Answers that come too late, or never


def give_up(vsock: VsockRig) -> None:
    vsock.send(RST)


def run_out_of_time(vsock: VsockRig) -> None:
    vsock.pass_time(TIMEOUT + 0.1)


def reset_the_driver(vsock: VsockRig) -> None:
    vsock.driver.reset()
    vsock.start()


def test_full_backlog_is_asked_for_once_in_a_tick_and_leaves_nothing(
    vsock: VsockRig, mute: Mute
) -> None:
    attempts = vsock.device._muxer._attempts
    for src_port in (1, 2):
        vsock.send(REQUEST, src_port=src_port)
    for _ in range(20):
        assert mute.questions() == [[1, 52, False]]
        mute.say(encode(NotConnected(errno.EAGAIN)))
        vsock.settle()
        vsock.pass_time(TICK_SECONDS)
    assert [len(delayed) for delayed in attempts._delayed.values()] == [2]
    mute.questions()
    mute.say(encode(NotConnected(errno.ENOENT)))
    vsock.settle()
    assert mute.questions() == [[1, 52, False]]
    mute.say(encode(NotConnected(errno.ENOENT)))
    vsock.settle()
    assert (len(attempts), attempts._delayed, len(attempts._queue)) == (0, {}, 0)
    assert mute.questions() == []


def test_line_does_not_grow_while_the_broker_is_slow(vsock: VsockRig, mute: Mute) -> None:
    attempts = vsock.device._muxer._attempts
    for port in (5, 6):
        vsock.send(REQUEST, dst_port=port)
        mute.say(encode(NotConnected(errno.EAGAIN)))
        vsock.settle()
    vsock.pass_time(30 * TICK_SECONDS)
    assert len(mute.questions()) == 3
    assert len(attempts._queue) == 1


@pytest.mark.parametrize("end", [give_up, run_out_of_time, reset_the_driver])
def test_socket_that_nobody_waits_for_is_closed(
    vsock: VsockRig, mute: Mute, end: Callable[[VsockRig], None]
) -> None:
    vsock.send(REQUEST)
    end(vsock)
    assert vsock.ops() == ([RST] if end is run_out_of_time else [])
    host = mute.connect()
    vsock.settle()
    assert closed(host)
    assert vsock.packets() == []
    vsock.send(REQUEST)  # with the same ports, by which the guest means another connection
    mute.questions()
    with mute.connect():
        assert vsock.ops() == [RESPONSE]
    host.close()


def test_guest_that_asks_again_does_not_get_the_answer_to_its_first_request(
    vsock: VsockRig, mute: Mute
) -> None:
    vsock.send(REQUEST)
    vsock.send(RST)
    vsock.send(REQUEST)
    mute.say(encode(NotConnected(errno.ENOENT)))
    assert vsock.packets() == []
    with mute.connect():
        assert vsock.ops() == [RESPONSE]


def test_request_without_an_answer_ends_in_a_reset(vsock: VsockRig, mute: Mute) -> None:
    for src_port in range(10):
        vsock.send(REQUEST, src_port=src_port)
    vsock.pass_time(TIMEOUT - 2 * TICK_SECONDS)
    assert vsock.packets() == []
    vsock.pass_time(3 * TICK_SECONDS)
    assert vsock.ops() == [RST] * 10
    assert len(mute.questions()) == 1


def test_broker_that_never_answers_ends_the_device(vsock: VsockRig, mute: Mute) -> None:
    vsock.send(REQUEST)
    with pytest.raises(VmmError, match="the broker of its connections does not answer"):
        vsock.pass_time(TICK_SECONDS * BROKER_TICKS + 0.1)
    assert len(mute.questions()) == 1


def test_slow_broker_is_no_reason(vsock: VsockRig, mute: Mute) -> None:
    for src_port in range(3):
        vsock.send(REQUEST, src_port=src_port)
        vsock.pass_time(TICK_SECONDS * (BROKER_TICKS - 2))
        mute.say(encode(NotConnected(errno.ENOENT)))
        vsock.settle()
    assert len(mute.questions()) == 3


@pytest.mark.parametrize(("waits_for", "delayed"), [("the broker", []), ("its backlog", [1])])
def test_flood_of_requests_that_the_guest_takes_back_leaves_nothing(
    vsock: VsockRig, mute: Mute, waits_for: str, delayed: list[int]
) -> None:
    attempts = vsock.device._muxer._attempts
    vsock.send(REQUEST, src_port=1)
    if waits_for == "its backlog":
        mute.say(encode(NotConnected(errno.EAGAIN)))
        vsock.settle()
    for src_port in range(2, 2000):
        vsock.send(REQUEST, src_port=src_port)
        vsock.send(RST, src_port=src_port)
    assert (len(attempts), len(attempts._queue)) == (1, 0)
    assert [len(each) for each in attempts._delayed.values()] == delayed
    vsock.send(RST, src_port=1)
    assert (len(attempts), attempts._delayed) == (0, {})
    assert len(mute.questions()) == 1


# What a broker may say


def reports(pattern: str, payload: bytes) -> object:
    return pytest.param(payload, pattern, id=pattern)


@pytest.mark.parametrize(
    ("payload", "reason"),
    [
        reports("the broker of its connections has ended", b""),
        reports("broker: killed by seccomp: system call 257", encode(BrokerDenied(257))),
        reports(
            "broker: killed by seccomp: system call 41",
            BROKER_DENIED_HEAD + b"\xce\x00\x00\x00\x29",  # as its handler of SIGSYS writes it
        ),
        reports("broker: jail: no root", encode(BrokerFailed("jail: no root"))),
        reports("broker: data that is not msgpack", b"\xc1"),
        reports("broker: message of unknown type 1", msgpack.packb([1, 52, False])),
        reports("broker: NotConnected with 0 fields", msgpack.packb([33])),
        reports("broker: 0 is not a whole number in 1", msgpack.packb([33, 0])),
        reports("broker: 'EIO' is not a whole number", msgpack.packb([33, "EIO"])),
        reports("broker: unexpected Connected with 0 descriptors", encode(Connected())),
    ],
)
@pytest.mark.parametrize("asked", [True, False], ids=["asked", "unasked"])
def test_broker_that_fails_ends_the_device_with_its_reason(
    vsock: VsockRig, mute: Mute, payload: bytes, reason: str, asked: bool
) -> None:
    if asked:
        vsock.send(REQUEST)
    if payload:
        mute.say(payload)
    else:
        mute.sock.shutdown(socket.SHUT_RDWR)
    with pytest.raises(VmmError, match=reason):
        vsock.settle()


@pytest.mark.parametrize(
    ("payload", "count", "asked"),
    [
        pytest.param(encode(Connected()), 1, False, id="unasked"),
        pytest.param(encode(Connected()), 2, True, id="two-sockets"),
        pytest.param(encode(NotConnected(errno.ENOENT)), 1, True, id="socket-with-a-refusal"),
        pytest.param(encode(NotConnected(errno.ENOENT)), 0, False, id="unasked-refusal"),
        pytest.param(encode(BrokerFailed("x")), 1, True, id="socket-with-a-report"),
    ],
)
def test_answer_that_is_none_ends_the_device_and_its_sockets_are_closed(
    vsock: VsockRig, mute: Mute, payload: bytes, count: int, asked: bool
) -> None:
    if asked:
        vsock.send(REQUEST)
    before = os.listdir("/proc/self/fd")
    mute.say(payload, *[mute.sock.fileno()] * count)
    with pytest.raises(VmmError, match=f"broker: unexpected .* with {count} descriptors"):
        vsock.settle()
    assert os.listdir("/proc/self/fd") == before


def test_broker_that_has_gone_ends_the_device_at_the_next_request(
    vsock: VsockRig, mute: Mute
) -> None:
    mute.sock.close()
    with pytest.raises(VmmError, match="the broker of its connections has ended"):
        vsock.send(REQUEST)


# What the log says


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (
            errno.EADDRINUSE,
            "the guest cannot reach port 52: the socket of that name belongs to a VM",
        ),
        (errno.ELOOP, "the guest cannot reach port 52: the name is a symbolic link, which is not"),
        (errno.EACCES, "the guest cannot reach port 52: Permission denied"),
    ],
)
def test_refusal_that_the_user_can_do_something_about_is_a_warning(
    vsock: VsockRig,
    mute: Mute,
    lines: list[str],
    monkeypatch: pytest.MonkeyPatch,
    error: int,
    line: str,
) -> None:
    unused = get_logger("devices.virtio.vsock").limited()  # by the tests before
    monkeypatch.setattr(vsock_attempts, "_log", unused)
    vsock.send(REQUEST)
    mute.say(encode(NotConnected(error)))
    assert vsock.ops() == [RST]
    (warning,) = lines
    assert warning.startswith(line)
