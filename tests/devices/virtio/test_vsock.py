# SPDX-License-Identifier: BSD-3-Clause
"""Streams over vsock, from both sides, with real sockets on the host's."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from devices.virtio.counters import named
from devices.virtio.vsock_common import COUNTERS
from devices.virtio.vsock_credit import Credit
from devices.virtio.vsock_muxer import (
    DEADLINE_TICKS,
    FIRST_LOCAL_PORT,
    LARGE_BUFFER_BYTES,
    MAX_CONNECTIONS,
    MAX_LARGE_BUFFERS,
    RETRIES,
    SMALL_BUFFER_BYTES,
)
from tests.support.vsock_rig import (
    BUFFER,
    CID,
    CREDIT_REQUEST,
    CREDIT_UPDATE,
    HEADER,
    HOST,
    REQUEST,
    RESPONSE,
    RST,
    RW,
    RX,
    SEQPACKET,
    SHUT_BOTH,
    SHUT_RECEIVE,
    SHUT_SEND,
    SHUTDOWN,
    STREAM,
    TX,
    Packet,
    VsockRig,
)


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[VsockRig]:
    rig = VsockRig(tmp_path)
    rig.start()
    yield rig
    rig.close()


def closed(sock: socket.socket) -> bool:
    """Return whether the device closed its end and everything before that was read."""
    try:
        return sock.recv(1) == b""
    except ConnectionResetError:
        return True


def test_config_is_the_cid(rig: VsockRig) -> None:
    assert rig.device.config() == CID.to_bytes(8, "little")


# Beginnings


def test_host_connects_and_reads_ok_when_the_guest_responds(rig: VsockRig) -> None:
    host = rig.connect(b"CONNECT 80\n")
    (request,) = rig.packets()
    assert request == Packet(
        HOST, CID, FIRST_LOCAL_PORT, 80, 0, STREAM, REQUEST, 0, LARGE_BUFFER_BYTES, 0
    )
    with pytest.raises(BlockingIOError):
        host.recv(1)
    rig.send(RESPONSE, src_port=80, dst_port=FIRST_LOCAL_PORT)
    assert host.recv(100) == b"OK %d\n" % FIRST_LOCAL_PORT


@pytest.mark.parametrize(
    "line", [b"connect 80\n", b"CONNECT   80  \n", b"Connect 00080\r\n", b"CONNECT 80\n"]
)
def test_connect_line_is_read_as_others_read_it(rig: VsockRig, line: bytes) -> None:
    rig.connect(line)
    (request,) = rig.packets()
    assert request.dst_port == 80


def test_connect_line_may_come_in_pieces(rig: VsockRig) -> None:
    host = rig.connect(b"CONNE")
    for piece in (b"CT 42", b"94967295", b"\n"):
        assert rig.packets() == []
        host.send(piece)
    (request,) = rig.packets()
    assert request.dst_port == 0xFFFF_FFFF


def test_what_follows_the_connect_line_is_data(rig: VsockRig) -> None:
    host = rig.connect(b"CONNECT 80\nearly")
    host.send(b" and late")
    (request,) = rig.packets()
    rig.send(RESPONSE, src_port=80, dst_port=request.src_port)
    assert b"".join(packet.data for packet in rig.packets()) == b"early and late"


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
def test_bad_connect_line_closes_the_socket(rig: VsockRig, line: bytes) -> None:
    assert closed(rig.connect(line))
    assert rig.packets() == []


def test_host_that_goes_away_before_its_line_ends_is_forgotten(rig: VsockRig) -> None:
    rig.connect(b"CONNECT 8").close()
    rig.settle()
    assert len(rig.driver.context.fds) == 2


def test_refusal_of_the_guest_closes_the_hosts_socket(rig: VsockRig) -> None:
    host = rig.connect(b"CONNECT 80\n")
    (request,) = rig.packets()
    rig.send(RST, src_port=80, dst_port=request.src_port)
    assert closed(host)
    assert rig.packets() == []


def test_guest_that_does_not_respond_loses_the_connection(rig: VsockRig) -> None:
    host = rig.connect(b"CONNECT 80\n")
    assert rig.ops() == [REQUEST]
    rig.pass_time(DEADLINE_TICKS - 1)
    assert rig.packets() == []
    rig.pass_time(1)
    assert rig.ops() == [RST]
    assert closed(host)


def test_request_that_the_guest_never_saw_ends_without_a_word(tmp_path: Path) -> None:
    rig = VsockRig(tmp_path)
    rig.start(buffers=0)
    host = rig.connect(b"CONNECT 80\n")
    rig.pass_time(DEADLINE_TICKS)
    assert closed(host)
    rig.offer(4)
    assert rig.packets() == []
    rig.close()


def test_host_without_a_driver_is_turned_away(tmp_path: Path) -> None:
    rig = VsockRig(tmp_path)
    assert closed(rig.connect(b"CONNECT 80\n"))
    rig.close()


def test_guest_connects_to_a_listener(rig: VsockRig) -> None:
    listener = rig.listen(52)
    rig.send(REQUEST)
    (response,) = rig.packets()
    assert response == Packet(HOST, CID, 52, 1000, 0, STREAM, RESPONSE, 0, LARGE_BUFFER_BYTES, 0)
    rig.keep(listener.accept()[0])


def test_guest_without_a_listener_is_reset(rig: VsockRig) -> None:
    rig.send(REQUEST)
    assert rig.packets() == [Packet(HOST, CID, 52, 1000, 0, STREAM, RST, 0, 0, 0)]


@pytest.mark.parametrize("kind", ["file", "stale", "seqpacket", "directory"])
def test_guest_is_reset_when_the_path_is_no_such_listener(rig: VsockRig, kind: str) -> None:
    path = Path(f"{rig.path}_52")
    match kind:
        case "file":
            path.write_bytes(b"")
        case "directory":
            path.mkdir()
        case "stale":
            rig.listen(52).close()
        case _:
            rig.listen(52, socket.SOCK_SEQPACKET)
    rig.send(REQUEST)
    assert rig.ops() == [RST]


def test_guest_is_reset_when_the_listener_is_not_for_us(rig: VsockRig) -> None:
    rig.listen(52)
    Path(f"{rig.path}_52").chmod(0)
    uid = os.geteuid()
    if uid == 0:  # root may connect to anything
        os.seteuid(65534)
    try:
        rig.send(REQUEST)
    finally:
        os.seteuid(uid)
    assert rig.ops() == [RST]


def test_full_backlog_is_waited_for(rig: VsockRig) -> None:
    listener = rig.listen(52, backlog=0)
    for port in (1, 2, 3):
        rig.send(REQUEST, src_port=port)
    assert [packet.dst_port for packet in rig.packets()] == [1]
    rig.keep(listener.accept()[0])
    rig.send(REQUEST, src_port=4)  # there is room now, but others came before
    for port in (2, 3, 4):
        rig.pass_time(0.1)
        (response,) = rig.packets()
        assert (response.op, response.dst_port) == (RESPONSE, port)
        rig.keep(listener.accept()[0])


def test_backlog_that_stays_full_ends_in_a_reset(rig: VsockRig) -> None:
    rig.listen(52, backlog=0)
    rig.send(REQUEST, src_port=1)
    assert rig.ops() == [RESPONSE]
    rig.send(REQUEST, src_port=2)
    rig.pass_time(0.02 * RETRIES + 0.1)
    assert rig.ops() == [RST]


def test_guest_may_give_up_while_the_backlog_is_full(rig: VsockRig) -> None:
    listener = rig.listen(52, backlog=0)
    rig.send(REQUEST, src_port=1)
    rig.send(REQUEST, src_port=2)
    rig.send(RST, src_port=2)
    assert rig.ops() == [RESPONSE]
    rig.keep(listener.accept()[0])
    rig.pass_time(1)
    assert rig.packets() == []


# Data


def test_data_of_the_guest_reaches_the_host(rig: VsockRig) -> None:
    host = rig.open_from_guest()
    rig.send(RW, b"hello ")
    rig.send(RW, b"host")
    assert host.recv(100) == b"hello host"


def test_packet_may_be_cut_in_any_way(rig: VsockRig) -> None:
    host = rig.open_from_guest()
    data = Packet(op=RW, len=4).header() + b"data"
    rig.send_raw(data[:1], data[1:43], data[43:46], data[46:])
    assert host.recv(100) == b"data"


def test_data_of_the_host_reaches_the_guest(rig: VsockRig) -> None:
    host, port = rig.open_from_host()
    host.send(b"hello guest")
    assert rig.packets() == [
        Packet(HOST, CID, port, 80, 11, STREAM, RW, 0, LARGE_BUFFER_BYTES, 0, b"hello guest")
    ]


def test_long_data_of_the_host_fills_buffer_after_buffer(rig: VsockRig) -> None:
    host = rig.open_from_guest()
    data = os.urandom(10 * BUFFER + 5)
    host.send(data)
    packets = rig.packets()
    assert b"".join(packet.data for packet in packets) == data
    assert [packet.len for packet in packets] == [BUFFER] * 10 + [5]


def test_large_receive_buffer_takes_no_more_than_a_packet_may_have(tmp_path: Path) -> None:
    rig = VsockRig(tmp_path)
    rig.start(buffers=0)
    rig.offer(3, HEADER.size + 100_000)
    host = rig.open_from_guest()
    host.send(bytes(100_000))
    assert [packet.len for packet in rig.packets()] == [65536, 100_000 - 65536]
    rig.close()


def test_data_waits_for_receive_buffers(tmp_path: Path) -> None:
    rig = VsockRig(tmp_path)
    rig.start(buffers=1)
    host = rig.open_from_guest()
    rx = rig.driver.queues[RX]
    for letter in b"abc":
        host.send(bytes([letter]) * BUFFER)
    rig.settle()
    assert [data[-1:] for _, _, data in rx.collect()] == [b"a"]
    rig.offer(1)
    assert [data[-1:] for _, _, data in rx.collect()] == [b"b"]
    rig.offer(2)
    assert [data[-1:] for _, _, data in rx.collect()] == [b"c"]
    rig.close()


def test_two_connections_are_kept_apart(rig: VsockRig) -> None:
    one = rig.open_from_guest(src_port=1)
    two = rig.open_from_guest(src_port=2)
    rig.send(RW, b"one", src_port=1)
    rig.send(RW, b"two", src_port=2)
    assert (one.recv(9), two.recv(9)) == (b"one", b"two")
    one.send(b"eins")
    two.send(b"zwei")
    found = {packet.dst_port: packet.data for packet in rig.packets()}
    assert found == {1: b"eins", 2: b"zwei"}


def test_talkative_host_does_not_starve_another(rig: VsockRig) -> None:
    one = rig.open_from_guest(src_port=1)
    two = rig.open_from_guest(src_port=2)
    one.send(bytes(30 * BUFFER))
    two.send(b"me too")
    order = [packet.dst_port for packet in rig.packets()]
    assert order.index(2) <= 2


# Credit


def test_host_that_does_not_read_stops_the_guest(rig: VsockRig) -> None:
    host = rig.open_from_guest()
    host.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1)
    data = os.urandom(1 << 20)
    sent = fwd_cnt = 0
    buf_alloc = LARGE_BUFFER_BYTES
    while room := min(fwd_cnt + buf_alloc - sent, 65536):
        rig.send(RW, data[sent : sent + room])
        sent += room
        fwd_cnt = max([fwd_cnt, *(packet.fwd_cnt for packet in rig.packets())])
    assert sent - fwd_cnt == buf_alloc
    assert fwd_cnt < 1 << 19  # the kernel's buffers have it
    found = b""
    while len(found) < sent:
        found += host.recv(1 << 20)
        rig.settle()
    assert found == data[:sent]
    updates = [packet for packet in rig.packets() if packet.op == CREDIT_UPDATE]
    assert updates[-1].fwd_cnt >= sent - buf_alloc // 4


def test_guest_without_credit_gets_no_data(rig: VsockRig) -> None:
    host = rig.open_from_guest(buf_alloc=10)
    host.send(b"0123456789abcdef")
    data, request = rig.packets()
    assert (data.data, request.op) == (b"0123456789", CREDIT_REQUEST)
    host.send(b"more")
    assert rig.packets() == []
    rig.send(CREDIT_UPDATE, buf_alloc=10, fwd_cnt=4)
    assert [packet.data for packet in rig.packets()] == [b"abcd", b""]
    rig.send(CREDIT_UPDATE, buf_alloc=100, fwd_cnt=14)
    assert b"".join(packet.data for packet in rig.packets()) == b"efmore"


def test_credit_request_is_answered(rig: VsockRig) -> None:
    rig.open_from_guest()
    rig.send(RW, b"12345")
    rig.send(CREDIT_REQUEST)
    (update,) = rig.packets()
    assert (update.op, update.buf_alloc, update.fwd_cnt) == (CREDIT_UPDATE, LARGE_BUFFER_BYTES, 5)


def test_guest_that_sends_much_hears_of_new_credit_in_time(rig: VsockRig) -> None:
    host = rig.open_from_guest()
    sent, told = 0, 0
    while sent < 4 << 20:
        assert sent + 32768 - told <= LARGE_BUFFER_BYTES
        rig.send(RW, bytes(32768))
        host.recv(1 << 20)
        sent += 32768
        told = max([told, *(packet.fwd_cnt for packet in rig.packets())])


def test_counters_wrap_after_four_gigabytes() -> None:
    credit = Credit(1 << 16)
    credit.learn(1 << 16, 0)
    step = 1 << 16
    for count in range(1, (1 << 16) + 2):
        credit.send(step)
        assert credit.room == 0
        credit.learn(step, count * step & 0xFFFF_FFFF)
        assert credit.room == step
        credit.receive(step)
        credit.deliver(step)
    assert credit.tell() == (step, step)


def test_fwd_cnt_that_comes_late_is_no_offence(rig: VsockRig) -> None:
    host = rig.open_from_guest()
    host.send(b"12345678")
    assert rig.ops() == [RW]
    rig.send(CREDIT_UPDATE, fwd_cnt=8)
    rig.send(CREDIT_UPDATE, fwd_cnt=4)
    assert rig.packets() == []


# Ends


def test_end_of_the_hosts_data_is_told_after_the_data(rig: VsockRig) -> None:
    host = rig.open_from_guest()
    host.send(b"bye")
    host.shutdown(socket.SHUT_WR)
    data, end = rig.packets()
    assert (data.data, end.op, end.flags) == (b"bye", SHUTDOWN, SHUT_SEND)
    rig.send(RW, b"answer")
    assert host.recv(100) == b"answer"


def test_closed_host_is_told_as_a_whole_and_ends_with_the_guests_reset(rig: VsockRig) -> None:
    host = rig.open_from_guest()
    host.send(b"bye")
    host.close()
    data, end = rig.packets()
    assert (data.data, end.op, end.flags) == (b"bye", SHUTDOWN, SHUT_BOTH)
    rig.send(RST)
    assert rig.packets() == []
    assert len(rig.driver.context.fds) == 2


def test_half_closed_host_that_closes_is_noticed(rig: VsockRig) -> None:
    host = rig.open_from_guest()
    host.shutdown(socket.SHUT_WR)
    assert [packet.flags for packet in rig.packets()] == [SHUT_SEND]
    host.close()
    assert [packet.flags for packet in rig.packets()] == [SHUT_BOTH]


def test_closed_host_gets_nothing_more_and_nobody_minds(rig: VsockRig) -> None:
    host = rig.open_from_guest()
    host.close()
    rig.send(RW, b"too late")
    rig.send(RW, b"again")
    assert [packet.flags for packet in rig.packets()] == [SHUT_RECEIVE, SHUT_BOTH]
    rig.send(RW, b"and again")
    rig.send(SHUTDOWN, flags=SHUT_BOTH)
    assert rig.ops()[-1] == RST


def test_guest_that_does_not_confirm_the_end_is_reset(rig: VsockRig) -> None:
    rig.open_from_guest().close()
    assert rig.ops() == [SHUTDOWN]
    rig.pass_time(DEADLINE_TICKS)
    assert rig.ops() == [RST]


def test_end_of_the_guests_data_reaches_the_host(rig: VsockRig) -> None:
    host = rig.open_from_guest()
    rig.send(RW, b"bye")
    rig.send(SHUTDOWN, flags=SHUT_SEND)
    assert host.recv(100) == b"bye"
    assert host.recv(100) == b""
    host.send(b"answer")
    assert [packet.data for packet in rig.packets()] == [b"answer"]


def test_guest_that_reads_no_more_closes_that_way(rig: VsockRig) -> None:
    host = rig.open_from_guest()
    rig.send(SHUTDOWN, flags=SHUT_RECEIVE)
    with pytest.raises(BrokenPipeError):
        host.send(b"who reads this")
    rig.send(RW, b"still talking")
    assert host.recv(100) == b"still talking"


@pytest.mark.parametrize("steps", [[SHUT_BOTH], [SHUT_SEND, SHUT_RECEIVE], [1, 3]])
def test_closed_guest_gets_its_reset(rig: VsockRig, steps: list[int]) -> None:
    host = rig.open_from_guest()
    for flags in steps:
        rig.send(SHUTDOWN, flags=flags)
    assert rig.ops()[-1] == RST
    assert closed(host)


def test_closed_guest_is_reset_only_when_the_host_has_everything(rig: VsockRig) -> None:
    host = rig.open_from_guest()
    sent = fill(rig)
    rig.send(SHUTDOWN, flags=SHUT_BOTH)
    assert RST not in rig.ops()
    assert drain(rig, host) == sent
    assert rig.ops()[-1] == RST


def test_reset_of_a_closed_guest_leaves_the_host_what_was_sent(rig: VsockRig) -> None:
    host = rig.open_from_guest()
    sent = fill(rig)
    rig.send(SHUTDOWN, flags=SHUT_BOTH)
    rig.send(RST)
    again = rig.open_from_guest()  # the ports are free
    assert drain(rig, host) == sent
    assert len(rig.driver.context.fds) == 3
    rig.send(RW, b"new")
    assert again.recv(10) == b"new"


def test_reset_of_the_guest_closes_the_hosts_socket(rig: VsockRig) -> None:
    host, port = rig.open_from_host()
    rig.send(RST, src_port=80, dst_port=port)
    assert closed(host)
    assert rig.packets() == []


def fill(rig: VsockRig) -> int:
    """Send until the guest has no credit left; return how many bytes."""
    sent, fwd_cnt = 0, 0
    while room := min(fwd_cnt + LARGE_BUFFER_BYTES - sent, 65536):
        rig.send(RW, bytes(room))
        sent += room
        fwd_cnt = max([fwd_cnt, *(packet.fwd_cnt for packet in rig.packets())])
    return sent


def drain(rig: VsockRig, host: socket.socket) -> int:
    """Read to the end; return how many bytes."""
    found = 0
    while data := host.recv(1 << 20):
        found += len(data)
        rig.settle()
    return found


# Many


def test_as_many_connections_as_promised_and_not_one_more(rig: VsockRig) -> None:
    listener = rig.listen(52, backlog=64)
    hosts = []
    for port in range(MAX_CONNECTIONS):
        rig.send(REQUEST, src_port=port)
        hosts.append(rig.keep(listener.accept()[0]))
        assert rig.ops() == [RESPONSE]
    rig.send(REQUEST, src_port=5000)
    assert rig.ops() == [RST]
    late = rig.connect()
    assert closed(late)
    rig.send(RST, src_port=3)
    rig.send(REQUEST, src_port=5000)
    (response,) = rig.packets()
    assert (response.op, response.buf_alloc) == (RESPONSE, SMALL_BUFFER_BYTES)
    assert MAX_LARGE_BUFFERS < MAX_CONNECTIONS


def test_silent_processes_make_room_for_new_ones(rig: VsockRig) -> None:
    silent = [rig.connect() for _ in range(MAX_CONNECTIONS)]
    rig.connect(b"CONNECT 80\n")
    assert closed(silent[0])
    assert rig.ops() == [REQUEST]


def test_driver_reset_closes_everything_and_starts_anew(rig: VsockRig) -> None:
    host = rig.open_from_guest()
    asked = rig.connect(b"CONNECT 80\n")
    rig.driver.reset()
    assert closed(host)
    assert closed(asked)
    rig.start()
    host = rig.open_from_guest()
    rig.send(RW, b"again")
    assert host.recv(10) == b"again"


def test_unanswered_listener_waits_do_not_survive_a_driver_reset(rig: VsockRig) -> None:
    listener = rig.listen(52, backlog=0)
    rig.send(REQUEST, src_port=1)
    rig.send(REQUEST, src_port=2)
    rig.driver.reset()
    rig.keep(listener.accept()[0])
    rig.start()
    rig.pass_time(1)
    assert rig.packets() == []


def test_paused_device_answers_nothing_and_loses_nothing(rig: VsockRig) -> None:
    host = rig.open_from_guest()
    rig.driver.worker.pause()
    host.send(b"meanwhile")
    rig.driver.queues[TX].submit([Packet(op=RW, len=2).header() + b"hi"])
    rig.driver.kick(TX)
    with pytest.raises(BlockingIOError):
        host.recv(1)
    rig.driver.worker.resume()
    for index in (RX, TX):
        rig.driver.kick(index)
    assert [packet.data for packet in rig.packets()] == [b"meanwhile"]
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
    rig = VsockRig(tmp_path, without=1 << 29 | (0b111 & ~features))
    rig.start()
    for kind, unix in ((STREAM, socket.SOCK_STREAM), (SEQPACKET, socket.SOCK_SEQPACKET)):
        rig.listen(kind, unix)
        rig.send(REQUEST, dst_port=kind, type=kind)
        assert rig.ops() == [RESPONSE if kind in types else RST]
    rig.close()


def test_connections_are_counted(rig: VsockRig) -> None:
    rig.open_from_guest()
    rig.open_from_guest(port=53)
    rig.open_from_host()
    rig.send(REQUEST, dst_port=9)
    rig.send(RW, b"x", dst_port=9)
    cells = rig.driver.context.counters.cells
    found = {name: count for name, count in named(cells, COUNTERS).items() if name in COUNTERS}
    assert found == {"from_guest": 2, "from_host": 1, "refused": 1, "resets": 1}
