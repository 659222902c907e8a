# SPDX-License-Identifier: BSD-3-Clause
"""SEQPACKET over vsock: messages keep their boundaries, whatever carries them."""

from __future__ import annotations

import os
import socket

import pytest

from devices.virtio.vsock import outbox as vsock_outbox
from devices.virtio.vsock.muxer import LARGE_BUFFER_BYTES
from tests.support.vsock_rig import (
    BUFFER,
    CREDIT_UPDATE,
    EOM,
    EOR,
    REQUEST,
    RESPONSE,
    RST,
    RW,
    SEQPACKET,
    SHUT_SEND,
    SHUTDOWN,
    VsockRig,
)


@pytest.fixture
def host(vsock: VsockRig) -> socket.socket:
    return vsock.open_from_guest(kind=SEQPACKET)


def send(vsock: VsockRig, data: bytes, flags: int = 0) -> None:
    vsock.send(RW, data, type=SEQPACKET, flags=flags)


def test_message_of_one_packet_arrives_as_it_is(vsock: VsockRig, host: socket.socket) -> None:
    send(vsock, b"one", EOM)
    send(vsock, b"two", EOM | EOR)
    assert [host.recv(100), host.recv(100)] == [b"one", b"two"]


def test_message_in_parts_arrives_when_it_is_complete(vsock: VsockRig, host: socket.socket) -> None:
    send(vsock, b"a mess")
    send(vsock, b"", EOR)
    with pytest.raises(BlockingIOError):
        host.recv(1)
    send(vsock, b"age", EOM)
    assert host.recv(100) == b"a message"


def test_empty_message_is_left_out(vsock: VsockRig, host: socket.socket) -> None:
    send(vsock, b"", EOM)
    send(vsock, b"x", EOM)
    assert host.recv(100) == b"x"


def test_long_message_of_the_guest_is_one_for_the_host(
    vsock: VsockRig, host: socket.socket
) -> None:
    data = os.urandom(LARGE_BUFFER_BYTES)
    for at in range(0, len(data), 65536):
        send(vsock, data[at : at + 65536], EOM if at + 65536 >= len(data) else 0)
    assert host.recv(1 << 20) == data
    (update,) = vsock.packets()
    assert (update.op, update.fwd_cnt) == (CREDIT_UPDATE, len(data))


def test_messages_wait_in_order_for_a_slow_host(vsock: VsockRig, host: socket.socket) -> None:
    messages = [b"%d" % number * 50 for number in range(600)]
    for message in messages:
        send(vsock, message[:3])
        send(vsock, message[3:], EOM)
    found = []
    for _ in messages:
        found.append(host.recv(1 << 16))
        vsock.settle()
    assert found == messages
    assert vsock.device._muxer.messages.waiting == 0


def test_too_many_waiting_messages_end_the_connection(
    vsock: VsockRig, host: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(vsock_outbox, "MAX_WAITING_MESSAGES", 100)
    for _ in range(1000):
        send(vsock, b"x", EOM)
        if RST in vsock.ops():
            break
    else:
        pytest.fail("a thousand small messages were kept")
    assert vsock.device._muxer.messages.waiting == 0
    host.close()


def test_message_of_the_host_is_marked_at_its_end(vsock: VsockRig, host: socket.socket) -> None:
    data = os.urandom(2 * BUFFER + 1)
    host.send(data)
    host.send(b"second")
    packets = vsock.packets()
    assert [packet.flags for packet in packets] == [0, 0, EOM, EOM]
    assert b"".join(packet.data for packet in packets[:3]) == data
    assert packets[3].data == b"second"


def test_message_waits_for_credit_in_its_midst(vsock: VsockRig) -> None:
    host = vsock.open_from_guest(kind=SEQPACKET, buf_alloc=10)
    host.send(b"0123456")
    host.send(b"abcdefgh")
    assert [(p.data, p.flags) for p in vsock.packets()][:2] == [(b"0123456", EOM), (b"abc", 0)]
    vsock.send(CREDIT_UPDATE, type=SEQPACKET, buf_alloc=10, fwd_cnt=10)
    assert [(p.data, p.flags) for p in vsock.packets()] == [(b"defgh", EOM)]


@pytest.mark.parametrize(
    ("buf_alloc", "length"),
    [
        pytest.param(100, 101, id="guest"),
        pytest.param(1 << 30, LARGE_BUFFER_BYTES + 1, id="device"),
    ],
)
def test_message_that_never_fits_ends_the_connection(
    vsock: VsockRig, buf_alloc: int, length: int
) -> None:
    host = vsock.open_from_guest(kind=SEQPACKET, buf_alloc=buf_alloc)
    host.send(bytes(length))
    assert vsock.ops() == [RST]
    assert host.recv(1) == b""


def test_end_of_the_host_comes_after_its_messages(vsock: VsockRig, host: socket.socket) -> None:
    host.send(b"bye")
    host.shutdown(socket.SHUT_WR)
    data, end = vsock.packets()
    assert (data.data, data.flags) == (b"bye", EOM)
    assert (end.op, end.flags, end.type) == (SHUTDOWN, SHUT_SEND, SEQPACKET)


def test_end_of_the_guest_comes_after_its_messages(vsock: VsockRig, host: socket.socket) -> None:
    send(vsock, b"bye", EOM)
    vsock.send(SHUTDOWN, type=SEQPACKET, flags=SHUT_SEND)
    assert [host.recv(100), host.recv(100)] == [b"bye", b""]


def test_host_connects_by_a_message(vsock: VsockRig) -> None:
    host = vsock.connect(b"CONNECT 80\n", socket.SOCK_SEQPACKET)
    (request,) = vsock.packets()
    assert (request.op, request.type, request.dst_port) == (REQUEST, SEQPACKET, 80)
    vsock.send(RESPONSE, src_port=80, dst_port=request.src_port, type=SEQPACKET)
    assert host.recv(100) == b"OK %d\n" % request.src_port
    vsock.send(RW, b"hello", src_port=80, dst_port=request.src_port, type=SEQPACKET, flags=EOM)
    assert host.recv(100) == b"hello"


def test_first_message_is_the_connect_line_alone(vsock: VsockRig) -> None:
    host = vsock.connect(b"CONNECT 80\nmore", socket.SOCK_SEQPACKET)
    assert host.recv(1) == b""


def test_packet_of_the_other_type_ends_the_connection(vsock: VsockRig, host: socket.socket) -> None:
    vsock.send(RW, b"stream data")
    assert vsock.ops() == [RST]
    assert host.recv(1) == b""
