# SPDX-License-Identifier: BSD-3-Clause
"""A guest that breaks the rules of virtio-vsock, and what it gets for it."""

from __future__ import annotations

import random
import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from devices.virtio.vsock.muxer import LARGE_BUFFER_BYTES, MAX_WAITING_RESETS
from tests.support.driver_queue import WRITE, Desc
from tests.support.vsock_rig import (
    CREDIT_REQUEST,
    CREDIT_UPDATE,
    DEVICE_FDS,
    HEADER,
    HOST,
    REQUEST,
    RESPONSE,
    RST,
    RW,
    RX,
    SEQPACKET,
    SHUT_SEND,
    SHUTDOWN,
    TX,
    Packet,
    VsockRig,
)


def alive(vsock: VsockRig) -> bool:
    """Return whether a connection to another port works as ever."""
    host = vsock.open_from_guest(port=99, src_port=9999)
    vsock.send(RW, b"alive", src_port=9999, dst_port=99)
    return host.recv(100) == b"alive"


@pytest.mark.parametrize(
    ("fields", "answer"),
    [
        pytest.param({"src_cid": 43}, [], id="src-cid-of-another"),
        pytest.param({"src_cid": HOST}, [], id="src-cid-host"),
        pytest.param({"src_cid": 42 | 1 << 32}, [], id="src-cid-upper-half"),
        pytest.param({"dst_cid": 1}, [], id="dst-cid-local"),
        pytest.param({"dst_cid": 42}, [], id="dst-cid-itself"),
        pytest.param({"dst_cid": 0xFFFFFFFF}, [], id="dst-cid-any"),
        pytest.param({"dst_cid": HOST | 1 << 63}, [], id="dst-cid-upper-half"),
        pytest.param({"type": 0}, [RST], id="type-0"),
        pytest.param({"type": 3}, [RST], id="type-3"),
        pytest.param({"type": 0xFFFF}, [RST], id="type-highest"),
        pytest.param({"type": 0, "op": RST}, [], id="type-0-reset"),
        pytest.param({"op": 0}, [RST], id="op-0"),
        pytest.param({"op": 8}, [RST], id="op-8"),
        pytest.param({"op": 0xFFFF}, [RST], id="op-highest"),
        pytest.param({"op": RW}, [RST], id="data-for-nobody"),
        pytest.param({"op": RESPONSE}, [RST], id="response-to-nothing"),
        pytest.param({"op": SHUTDOWN}, [RST], id="shutdown-of-nothing"),
        pytest.param({"op": CREDIT_UPDATE}, [RST], id="credit-update-for-nobody"),
        pytest.param({"op": CREDIT_REQUEST}, [RST], id="credit-request-for-nobody"),
        pytest.param({"op": RST}, [], id="reset-of-nothing"),
        pytest.param({"op": REQUEST, "dst_port": 0xFFFFFFFF}, [RST], id="highest-port"),
        pytest.param({"op": REQUEST, "len": 1}, [RST], id="request-with-length"),
    ],
)
def test_packet_without_a_connection(
    vsock: VsockRig, fields: dict[str, int], answer: list[int]
) -> None:
    fields = dict(fields)
    op = fields.pop("op", REQUEST)
    vsock.send(op, b"", **fields)
    assert vsock.ops() == answer
    assert alive(vsock)


@pytest.mark.parametrize(
    "packet",
    [
        pytest.param(Packet(op=RW, len=65537), id="above-the-limit"),
        pytest.param(Packet(op=RW, len=0xFFFFFFFF), id="four-gigabytes"),
        pytest.param(Packet(op=RW, len=5), id="more-than-the-chain"),
        pytest.param(Packet(op=SHUTDOWN, len=4), id="data-with-shutdown"),
        pytest.param(Packet(op=REQUEST), id="second-request"),
        pytest.param(Packet(op=RESPONSE), id="response-to-own-request"),
        pytest.param(Packet(op=0), id="op-0"),
        pytest.param(Packet(op=8), id="op-8"),
        pytest.param(Packet(op=RW, type=SEQPACKET), id="other-type"),
        pytest.param(Packet(op=RW, type=7), id="unknown-type"),
        pytest.param(Packet(op=CREDIT_UPDATE, fwd_cnt=1), id="took-what-was-not-sent"),
        pytest.param(Packet(op=CREDIT_UPDATE, fwd_cnt=0x7FFFFFFF), id="took-two-gigabytes"),
    ],
)
def test_broken_rule_ends_the_connection_and_no_other(vsock: VsockRig, packet: Packet) -> None:
    host = vsock.open_from_guest()
    vsock.send_raw(packet.header(), b"data")
    assert vsock.ops() == [RST]
    assert host.recv(1) == b""
    assert alive(vsock)
    assert vsock.driver.context.counters.errors == 1


@pytest.mark.parametrize("op", [RW, SHUTDOWN, REQUEST, CREDIT_REQUEST, CREDIT_UPDATE])
def test_guest_that_is_asked_may_only_answer(vsock: VsockRig, op: int) -> None:
    host = vsock.connect(b"CONNECT 80\n")
    (request,) = vsock.packets()
    vsock.send(op, src_port=80, dst_port=request.src_port)
    assert vsock.ops() == [RST]
    assert host.recv(1) == b""


def test_guest_cannot_answer_before_it_is_asked(tmp_path: Path) -> None:
    vsock = VsockRig(tmp_path)
    vsock.start(buffers=0)
    host = vsock.connect(b"CONNECT 80\n")
    vsock.send(RESPONSE, src_port=80, dst_port=1 << 30)
    vsock.offer(4)
    assert vsock.ops() == [RST]
    assert host.recv(1) == b""
    vsock.close()


def test_second_response_ends_the_connection(vsock: VsockRig) -> None:
    host, port = vsock.open_from_host()
    vsock.send(RESPONSE, src_port=80, dst_port=port)
    assert vsock.ops() == [RST]
    assert host.recv(1) == b""


def test_data_after_the_end_of_data_ends_the_connection(vsock: VsockRig) -> None:
    vsock.open_from_guest()
    vsock.send(SHUTDOWN, flags=SHUT_SEND)
    vsock.send(RW, b"one more thing")
    assert vsock.ops() == [RST]


def test_data_without_credit_ends_the_connection_and_frees_its_memory(vsock: VsockRig) -> None:
    host = vsock.open_from_guest()
    for _ in range(20):
        vsock.send(RW, bytes(65536))
    assert RST in vsock.ops()
    assert alive(vsock)
    host.close()


def test_buffer_of_four_gigabytes_costs_us_nothing(vsock: VsockRig) -> None:
    host = vsock.open_from_guest(buf_alloc=0xFFFFFFFF)
    host.send(bytes(100_000))
    assert sum(packet.len for packet in vsock.packets()) == 100_000


def test_buffer_that_shrinks_below_what_is_under_way_stops_us(vsock: VsockRig) -> None:
    host = vsock.open_from_guest()
    host.send(bytes(1000))
    assert vsock.ops() == [RW]
    vsock.send(CREDIT_UPDATE, buf_alloc=10)
    host.send(b"x")
    assert vsock.ops() == [CREDIT_REQUEST]


def test_port_of_the_hosts_own_choice_cannot_be_taken_over(vsock: VsockRig) -> None:
    host, port = vsock.open_from_host()
    vsock.listen(port)
    vsock.send(REQUEST, src_port=80, dst_port=port)
    assert vsock.ops() == [RST]
    assert host.recv(1) == b""


def test_hosts_port_is_not_given_out_twice(vsock: VsockRig) -> None:
    vsock.listen(1 << 30)
    vsock.send(REQUEST, src_port=80, dst_port=1 << 30)
    assert vsock.ops() == [RESPONSE]
    vsock.connect(b"CONNECT 80\n")
    (request,) = vsock.packets()
    assert request.src_port == (1 << 30) + 1


def test_resets_without_receive_buffers_are_bounded_and_none_is_lost(tmp_path: Path) -> None:
    vsock = VsockRig(tmp_path, size=256)
    vsock.start(buffers=0)
    tx = vsock.driver.queues[TX]
    sent = 0
    for _ in range(3):
        for _ in range(200):
            tx.submit([Packet(op=RW, src_port=sent).header()])
            sent += 1
        vsock.driver.kick(TX)
        tx.collect()
        if tx.requests:
            break
    assert len(vsock.device._muxer._resets) == MAX_WAITING_RESETS
    vsock.offer(250, HEADER.size + 4)
    answered = [packet.dst_port for packet in vsock.packets()]
    assert answered == list(range(sent))
    vsock.close()


def test_flood_of_requests_ends_at_the_limit(vsock: VsockRig) -> None:
    vsock.listen(52, backlog=2000)
    ops = []
    for port in range(1500):
        vsock.send(REQUEST, src_port=port)
        ops += vsock.ops()
    assert (ops.count(RESPONSE), ops.count(RST)) == (1023, 477)


def test_flood_of_requests_and_resets_leaves_nothing_behind(vsock: VsockRig) -> None:
    with vsock.listen(52, backlog=4000) as listener:
        for port in range(3000):
            vsock.send(REQUEST, src_port=port % 7)
            vsock.send(RST, src_port=port % 7)
            listener.accept()[0].close()
        vsock.packets()
    assert len(vsock.driver.context.fds) == DEVICE_FDS
    assert alive(vsock)


# Chains that are no packets


@pytest.mark.parametrize(
    "parts",
    [
        pytest.param([b"x"], id="one-byte"),
        pytest.param([bytes(43)], id="a-byte-short"),
        pytest.param([bytes(22), bytes(21)], id="a-byte-short-in-two"),
    ],
)
def test_short_chain_goes_back_unused(vsock: VsockRig, parts: list[bytes]) -> None:
    vsock.send_raw(*parts)
    assert vsock.packets() == []
    assert vsock.driver.context.counters.errors == 1
    assert alive(vsock)


def test_writable_packet_goes_back_unused(vsock: VsockRig) -> None:
    tx = vsock.driver.queues[TX]
    tx.submit(into=[44])
    vsock.driver.kick(TX)
    ((_, length, data),) = tx.collect()
    assert (length, data) == (0, b"\xee" * 44)
    assert alive(vsock)


@pytest.mark.parametrize("length", [1, 43, 44])
def test_short_receive_buffer_goes_back_unused(tmp_path: Path, length: int) -> None:
    vsock = VsockRig(tmp_path)
    vsock.start(buffers=0)
    vsock.offer(2, length)
    vsock.send(REQUEST)
    assert [used for _, used, _ in vsock.driver.queues[RX].collect()] == [0, 0]
    vsock.offer(2)
    assert vsock.ops() == [RST]
    vsock.close()


def test_readable_receive_buffer_goes_back_unused(tmp_path: Path) -> None:
    vsock = VsockRig(tmp_path)
    vsock.start(buffers=0)
    vsock.driver.queues[RX].submit([b"readable"], [4096])
    vsock.driver.queues[RX].submit([], [4096])
    vsock.send(REQUEST)
    assert [used for _, used, _ in vsock.driver.queues[RX].collect()] == [0, 44]
    vsock.close()


def test_receive_buffer_outside_memory_goes_back_unused(tmp_path: Path) -> None:
    vsock = VsockRig(tmp_path)
    vsock.start(buffers=0)
    vsock.driver.queues[RX].offer(0, {0: Desc(1 << 40, 4096, WRITE)})
    vsock.driver.queues[RX].offer(1, {1: Desc(0x200000, 4096, WRITE)})
    vsock.send(REQUEST)
    assert [used.len for used in vsock.driver.queues[RX].take_used()] == [0, 44]
    vsock.close()


def random_packet(rng: random.Random) -> bytes:
    def pick(*values: int) -> int:
        return rng.choice(values)

    data = rng.randbytes(pick(0, 0, 1, 100, 3000))
    packet = Packet(
        dst_port=pick(1, 2, 3),
        src_port=pick(1, 2, 3, 1 << 30),
        len=len(data) if rng.random() < 0.95 else rng.getrandbits(32),
        type=pick(1, 1, 1, 2, 2, 0, 9),
        op=pick(0, 1, 1, 1, 2, 3, 4, 5, 5, 5, 5, 5, 6, 7, 8),
        flags=pick(0, 1, 2, 3, 0xFFFFFFFF),
        buf_alloc=pick(0, 1, 1000, LARGE_BUFFER_BYTES, 0xFFFFFFFF),
        fwd_cnt=pick(0, 0, 0, 0, 10, 0x80000000),
    )
    return packet.header() + data


class RandomHost:
    """Processes of the host that do anything."""

    def __init__(self, vsock: VsockRig, rng: random.Random) -> None:
        self._rig = vsock
        self._rng = rng
        self._listeners = [vsock.listen(1), vsock.listen(2, socket.SOCK_SEQPACKET)]
        self._ends: list[socket.socket] = []

    def act(self) -> None:
        action = self._rng.choice([self._accept, self._connect, self._use, self._use])
        try:
            action()
        except OSError:
            return

    def _accept(self) -> None:
        listener = self._rng.choice(self._listeners)
        self._ends.append(self._rig.keep(listener.accept()[0]))

    def _connect(self) -> None:
        self._ends.append(self._rig.connect(b"CONNECT %d\n" % self._rng.randrange(4)))

    def _use(self) -> None:
        if not self._ends:
            return
        end = self._rng.choice(self._ends)
        actions: list[Callable[[], object]] = [
            lambda: end.send(bytes(self._rng.randrange(1, 5000))),
            lambda: end.recv(10_000),
            lambda: end.shutdown(self._rng.choice([socket.SHUT_RD, socket.SHUT_WR])),
            end.close,
        ]
        self._rng.choice(actions)()


@pytest.mark.parametrize("seed", range(20))
def test_random_packets_and_a_random_host_leave_the_device_sound(
    vsock: VsockRig, seed: int
) -> None:
    rng = random.Random(seed)
    host = RandomHost(vsock, rng)
    for _ in range(300):
        host.act()
        vsock.send_raw(random_packet(rng))
        if rng.random() < 0.3:
            vsock.packets()
        if rng.random() < 0.02:
            vsock.pass_time(9)
    vsock.packets()
    assert alive(vsock)
