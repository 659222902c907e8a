# SPDX-License-Identifier: BSD-3-Clause
"""Connections over vsock: how each side asks for one, what comes of it, and how many there are."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest

from devices.virtio.counters import named
from devices.virtio.vsock.attempts import ATTEMPT_TICKS, TICK_SECONDS
from devices.virtio.vsock.common import COUNTERS
from devices.virtio.vsock.muxer import (
    DEADLINE_TICKS,
    LARGE_BUFFER_BYTES,
    MAX_CONNECTIONS,
    MAX_LARGE_BUFFERS,
    SMALL_BUFFER_BYTES,
)
from devices.virtio.vsock.ports import FIRST_LOCAL_PORT
from tests.support.vsock_rig import (
    CID,
    HOST,
    REQUEST,
    RESPONSE,
    RST,
    RW,
    RX,
    SEQPACKET,
    STREAM,
    TX,
    Packet,
    VsockRig,
    closed,
)


def test_config_is_the_cid(vsock: VsockRig) -> None:
    assert vsock.device.config() == CID.to_bytes(8, "little")


# Beginnings


def test_host_connects_and_reads_ok_when_the_guest_responds(vsock: VsockRig) -> None:
    host = vsock.connect(b"CONNECT 80\n")
    (request,) = vsock.packets()
    assert request == Packet(
        HOST, CID, FIRST_LOCAL_PORT, 80, 0, STREAM, REQUEST, 0, LARGE_BUFFER_BYTES, 0
    )
    with pytest.raises(BlockingIOError):
        host.recv(1)
    vsock.send(RESPONSE, src_port=80, dst_port=FIRST_LOCAL_PORT)
    assert host.recv(100) == b"OK %d\n" % FIRST_LOCAL_PORT


@pytest.mark.parametrize(
    "line", [b"connect 80\n", b"CONNECT   80  \n", b"Connect 00080\r\n", b"CONNECT 80\n"]
)
def test_connect_line_is_read_as_others_read_it(vsock: VsockRig, line: bytes) -> None:
    vsock.connect(line)
    (request,) = vsock.packets()
    assert request.dst_port == 80


def test_connect_line_may_come_in_pieces(vsock: VsockRig) -> None:
    host = vsock.connect(b"CONNE")
    for piece in (b"CT 42", b"94967295", b"\n"):
        assert vsock.packets() == []
        host.send(piece)
    (request,) = vsock.packets()
    assert request.dst_port == 0xFFFF_FFFF


def test_what_follows_the_connect_line_is_data(vsock: VsockRig) -> None:
    host = vsock.connect(b"CONNECT 80\nearly")
    host.send(b" and late")
    (request,) = vsock.packets()
    vsock.send(RESPONSE, src_port=80, dst_port=request.src_port)
    assert b"".join(packet.data for packet in vsock.packets()) == b"early and late"


@pytest.mark.parametrize(
    "line",
    [
        pytest.param(b"GET / HTTP/1.1\n", id="word"),
        pytest.param(b"CONNECT\n", id="no-port"),
        pytest.param(b"CONNECT 80 81\n", id="two-ports"),
        pytest.param(b"CONNECT -1\n", id="negative"),
        pytest.param(b"CONNECT 0x50\n", id="hex"),
        pytest.param(b"CONNECT 4294967296\n", id="33-bits"),
        pytest.param("CONNECT ٣\n".encode(), id="other-digits"),
        pytest.param(b"CONNECT 80" + b" " * 40 + b"\n", id="long"),
        pytest.param(b"\n", id="empty"),
        pytest.param(b"\0" * 32, id="zeros"),
    ],
)
def test_bad_connect_line_closes_the_socket(vsock: VsockRig, line: bytes) -> None:
    assert closed(vsock.connect(line))
    assert vsock.packets() == []


def test_host_that_goes_away_before_its_line_ends_is_forgotten(vsock: VsockRig) -> None:
    before = set(vsock.driver.context.fds)
    vsock.connect(b"CONNECT 8").close()
    vsock.settle()
    assert vsock.driver.context.fds.keys() == before


def test_refusal_of_the_guest_closes_the_hosts_socket(vsock: VsockRig) -> None:
    host = vsock.connect(b"CONNECT 80\n")
    (request,) = vsock.packets()
    vsock.send(RST, src_port=80, dst_port=request.src_port)
    assert closed(host)
    assert vsock.packets() == []


def test_guest_that_does_not_respond_loses_the_connection(vsock: VsockRig) -> None:
    host = vsock.connect(b"CONNECT 80\n")
    assert vsock.ops() == [REQUEST]
    vsock.pass_time(DEADLINE_TICKS - 1)
    assert vsock.packets() == []
    vsock.pass_time(1)
    assert vsock.ops() == [RST]
    assert closed(host)


def test_request_that_the_guest_never_saw_ends_without_a_word(tmp_path: Path) -> None:
    vsock = VsockRig(tmp_path)
    vsock.start(buffers=0)
    host = vsock.connect(b"CONNECT 80\n")
    vsock.pass_time(DEADLINE_TICKS)
    assert closed(host)
    vsock.offer(4)
    assert vsock.packets() == []
    vsock.close()


def test_host_without_a_driver_is_turned_away(tmp_path: Path) -> None:
    vsock = VsockRig(tmp_path)
    assert closed(vsock.connect(b"CONNECT 80\n"))
    vsock.close()


def test_guest_connects_to_a_listener(vsock: VsockRig) -> None:
    listener = vsock.listen(52)
    vsock.send(REQUEST)
    (response,) = vsock.packets()
    assert response == Packet(HOST, CID, 52, 1000, 0, STREAM, RESPONSE, 0, LARGE_BUFFER_BYTES, 0)
    vsock.keep(listener.accept()[0])


def test_guest_without_a_listener_is_reset(vsock: VsockRig) -> None:
    vsock.send(REQUEST)
    assert vsock.packets() == [Packet(HOST, CID, 52, 1000, 0, STREAM, RST, 0, 0, 0)]


@pytest.mark.parametrize("kind", ["file", "stale", "seqpacket", "directory"])
def test_guest_is_reset_when_the_path_is_no_such_listener(vsock: VsockRig, kind: str) -> None:
    path = Path(f"{vsock.path}_52")
    match kind:
        case "file":
            path.write_bytes(b"")
        case "directory":
            path.mkdir()
        case "stale":
            vsock.listen(52).close()
        case _:
            vsock.listen(52, socket.SOCK_SEQPACKET)
    vsock.send(REQUEST)
    assert vsock.ops() == [RST]


def test_guest_is_reset_when_the_listener_is_not_for_us(vsock: VsockRig) -> None:
    vsock.listen(52)
    Path(f"{vsock.path}_52").chmod(0)
    uid = os.geteuid()
    if uid == 0:  # root may connect to anything
        os.seteuid(65534)
    try:
        vsock.send(REQUEST)
    finally:
        os.seteuid(uid)
    assert vsock.ops() == [RST]


def test_full_backlog_is_waited_for(vsock: VsockRig) -> None:
    listener = vsock.listen(52, backlog=0)
    for port in (1, 2, 3):
        vsock.send(REQUEST, src_port=port)
    assert [packet.dst_port for packet in vsock.packets()] == [1]
    vsock.keep(listener.accept()[0])
    vsock.send(REQUEST, src_port=4)  # there is room now, but others came before
    for port in (2, 3, 4):
        vsock.pass_time(0.1)
        (response,) = vsock.packets()
        assert (response.op, response.dst_port) == (RESPONSE, port)
        vsock.keep(listener.accept()[0])


def test_backlog_that_stays_full_ends_in_a_reset(vsock: VsockRig) -> None:
    vsock.listen(52, backlog=0)
    vsock.send(REQUEST, src_port=1)
    assert vsock.ops() == [RESPONSE]
    vsock.send(REQUEST, src_port=2)
    vsock.pass_time(TICK_SECONDS * ATTEMPT_TICKS + 0.1)
    assert vsock.ops() == [RST]


def test_guest_may_give_up_while_the_backlog_is_full(vsock: VsockRig) -> None:
    listener = vsock.listen(52, backlog=0)
    vsock.send(REQUEST, src_port=1)
    vsock.send(REQUEST, src_port=2)
    vsock.send(RST, src_port=2)
    assert vsock.ops() == [RESPONSE]
    vsock.keep(listener.accept()[0])
    vsock.pass_time(1)
    assert vsock.packets() == []


# Many


def test_as_many_connections_as_promised_and_not_one_more(vsock: VsockRig) -> None:
    listener = vsock.listen(52, backlog=64)
    hosts = []
    for port in range(MAX_CONNECTIONS):
        vsock.send(REQUEST, src_port=port)
        hosts.append(vsock.keep(listener.accept()[0]))
        assert vsock.ops() == [RESPONSE]
    vsock.send(REQUEST, src_port=5000)
    assert vsock.ops() == [RST]
    late = vsock.connect()
    assert closed(late)
    vsock.send(RST, src_port=3)
    vsock.send(REQUEST, src_port=5000)
    (response,) = vsock.packets()
    assert (response.op, response.buf_alloc) == (RESPONSE, SMALL_BUFFER_BYTES)
    assert MAX_LARGE_BUFFERS < MAX_CONNECTIONS


def test_silent_processes_make_room_for_new_ones(vsock: VsockRig) -> None:
    silent = [vsock.connect() for _ in range(MAX_CONNECTIONS)]
    vsock.connect(b"CONNECT 80\n")
    assert closed(silent[0])
    assert vsock.ops() == [REQUEST]


def test_driver_reset_closes_everything_and_starts_anew(vsock: VsockRig) -> None:
    host = vsock.open_from_guest()
    asked = vsock.connect(b"CONNECT 80\n")
    vsock.driver.reset()
    assert closed(host)
    assert closed(asked)
    vsock.start()
    host = vsock.open_from_guest()
    vsock.send(RW, b"again")
    assert host.recv(10) == b"again"


def test_unanswered_listener_waits_do_not_survive_a_driver_reset(vsock: VsockRig) -> None:
    listener = vsock.listen(52, backlog=0)
    vsock.send(REQUEST, src_port=1)
    vsock.send(REQUEST, src_port=2)
    vsock.driver.reset()
    vsock.keep(listener.accept()[0])
    vsock.start()
    vsock.pass_time(1)
    assert vsock.packets() == []


def test_paused_device_answers_nothing_and_loses_nothing(vsock: VsockRig) -> None:
    host = vsock.open_from_guest()
    vsock.driver.worker.pause()
    host.send(b"meanwhile")
    vsock.driver.queues[TX].submit([Packet(op=RW, len=2).header() + b"hi"])
    vsock.driver.kick(TX)
    with pytest.raises(BlockingIOError):
        host.recv(1)
    vsock.driver.worker.resume()
    for index in (RX, TX):
        vsock.driver.kick(index)
    assert [packet.data for packet in vsock.packets()] == [b"meanwhile"]
    assert host.recv(10) == b"hi"


@pytest.mark.parametrize(
    ("features", "types"),
    [
        (0, {STREAM}),
        (1 << 1, {STREAM, SEQPACKET}),
        (1 << 0 | 1 << 1 | 1 << 2, {STREAM, SEQPACKET}),
        (1 << 1 | 1 << 2, {SEQPACKET}),
    ],
)
def test_negotiated_types_alone_are_served(tmp_path: Path, features: int, types: set[int]) -> None:
    vsock = VsockRig(tmp_path, without=1 << 29 | (0b111 & ~features))
    vsock.start()
    for kind, unix in ((STREAM, socket.SOCK_STREAM), (SEQPACKET, socket.SOCK_SEQPACKET)):
        vsock.listen(kind, unix)
        vsock.send(REQUEST, dst_port=kind, type=kind)
        assert vsock.ops() == [RESPONSE if kind in types else RST]
    vsock.close()


def test_connections_are_counted(vsock: VsockRig) -> None:
    vsock.open_from_guest()
    vsock.open_from_guest(port=53)
    vsock.open_from_host()
    vsock.send(REQUEST, dst_port=9)
    vsock.send(RW, b"x", dst_port=9)
    cells = vsock.driver.context.counters.cells
    found = {name: count for name, count in named(cells, COUNTERS).items() if name in COUNTERS}
    assert found == {"from_guest": 2, "from_host": 1, "refused": 1, "resets": 1}
