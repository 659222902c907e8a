# SPDX-License-Identifier: BSD-3-Clause
"""Clients of the API socket: many, slow, gone, with descriptors."""

from __future__ import annotations

import os
import socket
from typing import TYPE_CHECKING

import pytest

from crosvm_py.api.http import TOO_MANY_CONNECTIONS
from crosvm_py.api.server import MAX_CONNECTIONS
from crosvm_py.requests.life import PowerButton, Suspend
from crosvm_py.requests.pending import Pending
from crosvm_py.requests.protocol import Done
from tests.crosvm_py.api.rig import read_answer, request

if TYPE_CHECKING:
    from tests.crosvm_py.api.rig import Rig

PING = request("GET", "vmm.ping")


@pytest.mark.parametrize("size", [1, 7, 256])
def test_request_in_pieces_is_answered(rig: Rig, size: int) -> None:
    with rig.client() as sock:
        for at in range(0, len(PING), size):
            sock.send(PING[at : at + size])
            rig.turn(1)
        assert read_answer(sock).status == 200


def test_pipelined_requests_are_answered_in_order(rig: Rig) -> None:
    with rig.client() as sock:
        sock.send(PING + request("PUT", "vm.resume") + b"x\r\n\r\n" + PING)
        rig.turn()
        data = sock.recv(65536)
    assert [part.split()[0] for part in data.split(b"HTTP/1.1 ")[1:]] == [
        *(b"200", b"500", b"400", b"200")
    ]


def test_eleventh_client_is_told_and_disconnected(rig: Rig) -> None:
    clients = [rig.client() for _ in range(MAX_CONNECTIONS)]
    with rig.client() as one_more:
        assert one_more.recv(1000) == TOO_MANY_CONNECTIONS
        assert one_more.recv(1) == b""
    clients.pop().close()
    rig.turn()
    with rig.client() as next_one:
        assert rig.call(next_one, PING).status == 200
    for sock in clients:
        sock.close()


def test_get_is_answered_while_a_slow_put_runs(rig: Rig) -> None:
    slow = rig.answers[Suspend] = Pending()
    with rig.client() as one, rig.client() as two:
        one.send(request("PUT", "vm.pause"))
        rig.turn()
        assert rig.call(two, PING).status == 200
        assert rig.call(two, request("GET", "vm.info")).status == 200
        two.send(request("PUT", "vm.power-button"))  # waits for the other
        rig.turn()
        assert Suspend() in rig.asked()
        assert PowerButton() not in rig.asked()
        slow.complete(Done())
        rig.turn()
        assert read_answer(one).status == read_answer(two).status == 204
    assert rig.asked()[-1] == PowerButton()


def test_client_that_goes_before_its_answer_delays_nobody(rig: Rig) -> None:
    slow = rig.answers[Suspend] = Pending()
    with rig.client() as one:
        one.send(request("PUT", "vm.pause"))
        rig.turn()
    rig.turn()
    assert rig.server.client_count == 0
    slow.complete(Done())
    assert rig.put("vm.power-button").status == 204


def test_client_that_closes_its_half_gets_its_answer(rig: Rig) -> None:
    slow = rig.answers[Suspend] = Pending()
    with rig.client() as sock:
        sock.send(request("PUT", "vm.pause"))
        sock.shutdown(socket.SHUT_WR)
        rig.turn()
        slow.complete(Done())
        rig.turn()
        assert read_answer(sock).status == 204
        assert sock.recv(1) == b""
    assert rig.server.client_count == 0


def test_client_that_does_not_read_waits_alone(rig: Rig) -> None:
    with rig.client() as sock, rig.client() as other:
        sock.setblocking(False)
        count = 0
        try:
            while count < 100_000:
                sock.send(request("GET", "vm.info"))
                count += 1
                rig.turn(1)
        except BlockingIOError:
            pass
        assert rig.call(other, PING).status == 200
        sock.settimeout(5)
        data = b""
        while data.count(b"HTTP/1.1 200") < count:
            rig.turn(1)
            data += sock.recv(1 << 20)


def test_descriptors_that_no_call_takes_are_closed(rig: Rig) -> None:
    before = len(os.listdir("/proc/self/fd"))
    sent = [os.eventfd(0) for _ in range(20)]
    with rig.client() as sock:
        assert rig.call(sock, PING, sent).status == 200
        assert rig.call(sock, request("PUT", "vm.add-net", b"{}"), sent).status == 400
        assert rig.call(sock, request("PUT", "vm.add-net", b"["), sent).status == 400
        assert rig.call(sock, request("PUT", "nonsense", b"["), sent).status == 404
        assert rig.call(sock, b"x\r\n\r\n", sent).status == 400
        sock.sendmsg([b"half"], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, _packed(sent))])
        rig.turn()
    rig.turn()
    for fd in sent:
        os.close(fd)
    assert len(os.listdir("/proc/self/fd")) == before


def _packed(fds: list[int]) -> bytes:
    return b"".join(fd.to_bytes(4, "little") for fd in fds)
