# SPDX-License-Identifier: BSD-3-Clause
"""Streams over vsock, with real sockets on the host's side: data, credit and ends."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest

from devices.virtio.vsock.credit import Credit
from devices.virtio.vsock.muxer import DEADLINE_TICKS, LARGE_BUFFER_BYTES
from tests.support.vsock_rig import (
    BUFFER,
    CID,
    CREDIT_REQUEST,
    CREDIT_UPDATE,
    DEVICE_FDS,
    HEADER,
    HOST,
    RST,
    RW,
    RX,
    SHUT_BOTH,
    SHUT_RECEIVE,
    SHUT_SEND,
    SHUTDOWN,
    STREAM,
    Packet,
    VsockRig,
    closed,
)

# Data


def test_data_of_the_guest_reaches_the_host(vsock: VsockRig) -> None:
    host = vsock.open_from_guest()
    vsock.send(RW, b"hello ")
    vsock.send(RW, b"host")
    assert host.recv(100) == b"hello host"


def test_packet_may_be_cut_in_any_way(vsock: VsockRig) -> None:
    host = vsock.open_from_guest()
    data = Packet(op=RW, len=4).header() + b"data"
    vsock.send_raw(data[:1], data[1:43], data[43:46], data[46:])
    assert host.recv(100) == b"data"


def test_data_of_the_host_reaches_the_guest(vsock: VsockRig) -> None:
    host, port = vsock.open_from_host()
    host.send(b"hello guest")
    assert vsock.packets() == [
        Packet(HOST, CID, port, 80, 11, STREAM, RW, 0, LARGE_BUFFER_BYTES, 0, b"hello guest")
    ]


def test_long_data_of_the_host_fills_buffer_after_buffer(vsock: VsockRig) -> None:
    host = vsock.open_from_guest()
    data = os.urandom(10 * BUFFER + 5)
    host.send(data)
    packets = vsock.packets()
    assert b"".join(packet.data for packet in packets) == data
    assert [packet.len for packet in packets] == [BUFFER] * 10 + [5]


def test_large_receive_buffer_takes_no_more_than_a_packet_may_have(tmp_path: Path) -> None:
    vsock = VsockRig(tmp_path)
    vsock.start(buffers=0)
    vsock.offer(3, HEADER.size + 100_000)
    host = vsock.open_from_guest()
    host.send(bytes(100_000))
    assert [packet.len for packet in vsock.packets()] == [65536, 100_000 - 65536]
    vsock.close()


def test_data_waits_for_receive_buffers(tmp_path: Path) -> None:
    vsock = VsockRig(tmp_path)
    vsock.start(buffers=1)
    host = vsock.open_from_guest()
    rx = vsock.driver.queues[RX]
    for letter in b"abc":
        host.send(bytes([letter]) * BUFFER)
    vsock.settle()
    assert [data[-1:] for _, _, data in rx.collect()] == [b"a"]
    vsock.offer(1)
    assert [data[-1:] for _, _, data in rx.collect()] == [b"b"]
    vsock.offer(2)
    assert [data[-1:] for _, _, data in rx.collect()] == [b"c"]
    vsock.close()


def test_two_connections_are_kept_apart(vsock: VsockRig) -> None:
    one = vsock.open_from_guest(src_port=1)
    two = vsock.open_from_guest(src_port=2)
    vsock.send(RW, b"one", src_port=1)
    vsock.send(RW, b"two", src_port=2)
    assert (one.recv(9), two.recv(9)) == (b"one", b"two")
    one.send(b"eins")
    two.send(b"zwei")
    found = {packet.dst_port: packet.data for packet in vsock.packets()}
    assert found == {1: b"eins", 2: b"zwei"}


def test_talkative_host_does_not_starve_another(vsock: VsockRig) -> None:
    one = vsock.open_from_guest(src_port=1)
    two = vsock.open_from_guest(src_port=2)
    one.send(bytes(30 * BUFFER))
    two.send(b"me too")
    order = [packet.dst_port for packet in vsock.packets()]
    assert order.index(2) <= 2


# Credit


def test_host_that_does_not_read_stops_the_guest(vsock: VsockRig) -> None:
    host = vsock.open_from_guest()
    host.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1)
    data = os.urandom(1 << 20)
    sent = fwd_cnt = 0
    buf_alloc = LARGE_BUFFER_BYTES
    while room := min(fwd_cnt + buf_alloc - sent, 65536):
        vsock.send(RW, data[sent : sent + room])
        sent += room
        fwd_cnt = max([fwd_cnt, *(packet.fwd_cnt for packet in vsock.packets())])
    assert sent - fwd_cnt == buf_alloc
    assert fwd_cnt < 1 << 19  # the kernel's buffers have it
    found = b""
    while len(found) < sent:
        found += host.recv(1 << 20)
        vsock.settle()
    assert found == data[:sent]
    updates = [packet for packet in vsock.packets() if packet.op == CREDIT_UPDATE]
    assert updates[-1].fwd_cnt >= sent - buf_alloc // 4


def test_guest_without_credit_gets_no_data(vsock: VsockRig) -> None:
    host = vsock.open_from_guest(buf_alloc=10)
    host.send(b"0123456789abcdef")
    data, request = vsock.packets()
    assert (data.data, request.op) == (b"0123456789", CREDIT_REQUEST)
    host.send(b"more")
    assert vsock.packets() == []
    vsock.send(CREDIT_UPDATE, buf_alloc=10, fwd_cnt=4)
    assert [packet.data for packet in vsock.packets()] == [b"abcd", b""]
    vsock.send(CREDIT_UPDATE, buf_alloc=100, fwd_cnt=14)
    assert b"".join(packet.data for packet in vsock.packets()) == b"efmore"


def test_credit_request_is_answered(vsock: VsockRig) -> None:
    vsock.open_from_guest()
    vsock.send(RW, b"12345")
    vsock.send(CREDIT_REQUEST)
    (update,) = vsock.packets()
    assert (update.op, update.buf_alloc, update.fwd_cnt) == (CREDIT_UPDATE, LARGE_BUFFER_BYTES, 5)


def test_guest_that_sends_much_hears_of_new_credit_in_time(vsock: VsockRig) -> None:
    host = vsock.open_from_guest()
    sent, told = 0, 0
    while sent < 4 << 20:
        assert sent + 32768 - told <= LARGE_BUFFER_BYTES
        vsock.send(RW, bytes(32768))
        host.recv(1 << 20)
        sent += 32768
        told = max([told, *(packet.fwd_cnt for packet in vsock.packets())])


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


def test_fwd_cnt_that_comes_late_is_no_offence(vsock: VsockRig) -> None:
    host = vsock.open_from_guest()
    host.send(b"12345678")
    assert vsock.ops() == [RW]
    vsock.send(CREDIT_UPDATE, fwd_cnt=8)
    vsock.send(CREDIT_UPDATE, fwd_cnt=4)
    assert vsock.packets() == []


# Ends


def test_end_of_the_hosts_data_is_told_after_the_data(vsock: VsockRig) -> None:
    host = vsock.open_from_guest()
    host.send(b"bye")
    host.shutdown(socket.SHUT_WR)
    data, end = vsock.packets()
    assert (data.data, end.op, end.flags) == (b"bye", SHUTDOWN, SHUT_SEND)
    vsock.send(RW, b"answer")
    assert host.recv(100) == b"answer"


def test_closed_host_is_told_as_a_whole_and_ends_with_the_guests_reset(vsock: VsockRig) -> None:
    host = vsock.open_from_guest()
    host.send(b"bye")
    host.close()
    data, end = vsock.packets()
    assert (data.data, end.op, end.flags) == (b"bye", SHUTDOWN, SHUT_BOTH)
    vsock.send(RST)
    assert vsock.packets() == []
    assert len(vsock.driver.context.fds) == DEVICE_FDS


def test_half_closed_host_that_closes_is_noticed(vsock: VsockRig) -> None:
    host = vsock.open_from_guest()
    host.shutdown(socket.SHUT_WR)
    assert [packet.flags for packet in vsock.packets()] == [SHUT_SEND]
    host.close()
    assert [packet.flags for packet in vsock.packets()] == [SHUT_BOTH]


def test_closed_host_gets_nothing_more_and_nobody_minds(vsock: VsockRig) -> None:
    host = vsock.open_from_guest()
    host.close()
    vsock.send(RW, b"too late")
    vsock.send(RW, b"again")
    assert [packet.flags for packet in vsock.packets()] == [SHUT_RECEIVE, SHUT_BOTH]
    vsock.send(RW, b"and again")
    vsock.send(SHUTDOWN, flags=SHUT_BOTH)
    assert vsock.ops()[-1] == RST


def test_guest_that_does_not_confirm_the_end_is_reset(vsock: VsockRig) -> None:
    vsock.open_from_guest().close()
    assert vsock.ops() == [SHUTDOWN]
    vsock.pass_time(DEADLINE_TICKS)
    assert vsock.ops() == [RST]


def test_end_of_the_guests_data_reaches_the_host(vsock: VsockRig) -> None:
    host = vsock.open_from_guest()
    vsock.send(RW, b"bye")
    vsock.send(SHUTDOWN, flags=SHUT_SEND)
    assert host.recv(100) == b"bye"
    assert host.recv(100) == b""
    host.send(b"answer")
    assert [packet.data for packet in vsock.packets()] == [b"answer"]


def test_guest_that_reads_no_more_closes_that_way(vsock: VsockRig) -> None:
    host = vsock.open_from_guest()
    vsock.send(SHUTDOWN, flags=SHUT_RECEIVE)
    with pytest.raises(BrokenPipeError):
        host.send(b"who reads this")
    vsock.send(RW, b"still talking")
    assert host.recv(100) == b"still talking"


@pytest.mark.parametrize("steps", [[SHUT_BOTH], [SHUT_SEND, SHUT_RECEIVE], [1, 3]])
def test_closed_guest_gets_its_reset(vsock: VsockRig, steps: list[int]) -> None:
    host = vsock.open_from_guest()
    for flags in steps:
        vsock.send(SHUTDOWN, flags=flags)
    assert vsock.ops()[-1] == RST
    assert closed(host)


def test_closed_guest_is_reset_only_when_the_host_has_everything(vsock: VsockRig) -> None:
    host = vsock.open_from_guest()
    sent = fill(vsock)
    vsock.send(SHUTDOWN, flags=SHUT_BOTH)
    assert RST not in vsock.ops()
    assert drain(vsock, host) == sent
    assert vsock.ops()[-1] == RST


def test_reset_of_a_closed_guest_leaves_the_host_what_was_sent(vsock: VsockRig) -> None:
    host = vsock.open_from_guest()
    sent = fill(vsock)
    vsock.send(SHUTDOWN, flags=SHUT_BOTH)
    vsock.send(RST)
    again = vsock.open_from_guest()  # the ports are free
    assert drain(vsock, host) == sent
    assert len(vsock.driver.context.fds) == DEVICE_FDS + 1
    vsock.send(RW, b"new")
    assert again.recv(10) == b"new"


def test_reset_of_the_guest_closes_the_hosts_socket(vsock: VsockRig) -> None:
    host, port = vsock.open_from_host()
    vsock.send(RST, src_port=80, dst_port=port)
    assert closed(host)
    assert vsock.packets() == []


def fill(vsock: VsockRig) -> int:
    """Send until the guest has no credit left; return how many bytes."""
    sent, fwd_cnt = 0, 0
    while room := min(fwd_cnt + LARGE_BUFFER_BYTES - sent, 65536):
        vsock.send(RW, bytes(room))
        sent += room
        fwd_cnt = max([fwd_cnt, *(packet.fwd_cnt for packet in vsock.packets())])
    return sent


def drain(vsock: VsockRig, host: socket.socket) -> int:
    """Read to the end; return how many bytes."""
    found = 0
    while data := host.recv(1 << 20):
        found += len(data)
        vsock.settle()
    return found
