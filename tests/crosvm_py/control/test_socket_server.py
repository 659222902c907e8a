# SPDX-License-Identifier: BSD-3-Clause
"""The control server against clients that are slow, loud, broken or hostile."""

from __future__ import annotations

import errno
import os
import socket
import struct
from collections.abc import Iterator
from pathlib import Path

import msgpack
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from crosvm_py.control import socket_server as server_module
from crosvm_py.control.socket_server import IDLE_SECONDS, MAX_CLIENTS, ControlServer
from crosvm_py.requests.balloon import BalloonSet
from crosvm_py.requests.catalogue import RESPONSES
from crosvm_py.requests.life import PowerButton, Resume, Stop, Suspend
from crosvm_py.requests.pending import Pending
from crosvm_py.requests.protocol import MAX_REQUEST_BYTES, Done, Failed, Request, Response
from crosvm_py.socket_path import bind_control_socket
from sys_util.errors import ConfigError
from sys_util.event_loop import EventLoop
from sys_util.wire import Message, encode

pytestmark = pytest.mark.usefixtures("steady_fds")


class Host:
    """A VM as its clients see it: a real loop, a real socket, a scripted handler."""

    def __init__(self, directory: Path) -> None:
        self.loop = EventLoop()
        self.now = 1000.0
        self.requests: list[Request] = []
        self.pending: list[Pending] = []
        self.bound = bind_control_socket(str(directory / "s"))
        self.server = ControlServer(self.loop, self.bound, self.handle, clock=lambda: self.now)
        self.turn()  # the question that bind_control_socket asked itself

    def handle(self, request: Request) -> Response | Pending:
        self.requests.append(request)
        if isinstance(request, PowerButton):
            raise ConfigError("the guest has no ACPI")
        if isinstance(request, BalloonSet):
            raise KeyError(request.size_bytes)
        if isinstance(request, Suspend):
            self.pending.append(Pending())
            return self.pending[-1]
        return Done()

    def turn(self, rounds: int = 4) -> None:
        for _ in range(rounds):
            self.loop.run_once(0)

    def client(self) -> socket.socket:
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        sock.settimeout(5)
        sock.connect(self.bound.path)
        self.turn()
        return sock

    def ask(self, sock: socket.socket, payload: bytes) -> Message:
        sock.send(payload)
        self.turn()
        return RESPONSES.decode(sock.recv(65536))

    def is_fine(self) -> bool:
        with self.client() as sock:
            return self.ask(sock, encode(Resume())) == Done()


@pytest.fixture
def host(tmp_path: Path) -> Iterator[Host]:
    made = Host(tmp_path)
    yield made
    made.server.close()
    made.loop.close()


def test_server_request_is_answered(host: Host) -> None:
    with host.client() as sock:
        assert host.ask(sock, encode(Stop())) == Done()
    assert host.requests == [Stop()]


def test_server_several_requests_on_one_connection(host: Host) -> None:
    with host.client() as sock:
        assert host.ask(sock, encode(Resume())) == Done()
        assert host.ask(sock, encode(Resume())) == Done()


def test_server_handler_refusal_is_the_answer_and_the_connection_stays(host: Host) -> None:
    with host.client() as sock:
        assert host.ask(sock, encode(PowerButton())) == Failed("the guest has no ACPI")
        assert host.ask(sock, encode(Resume())) == Done()


def test_server_handler_with_a_bug_fails_that_request_alone(host: Host, lines: list[str]) -> None:
    with host.client() as sock:
        assert host.ask(sock, encode(BalloonSet(0))) == Failed("the request: KeyError")
        assert host.ask(sock, encode(Resume())) == Done()
    assert lines[0] == "the request could not be used"


HOSTILE = [
    pytest.param(b"\xc1", "not msgpack", id="reserved-byte"),
    pytest.param(b"{}", "not msgpack", id="json"),
    pytest.param(encode(Stop())[:-1] + b"", "not msgpack", id="half"),
    pytest.param(encode(Stop()) + b"\x00", "not msgpack", id="more-than-one"),
    pytest.param(b"\x91" * 4000, "8 deep", id="deep"),
    pytest.param(b"\xdd\xff\xff\xff\xff", "not msgpack", id="huge-array"),
    pytest.param(b"\xc6\xff\xff\xff\xff", "not msgpack", id="huge-bytes"),
    pytest.param(b"\xd9\x02\xff\xfe", "not msgpack", id="bad-utf8"),
    pytest.param(msgpack.packb({"type": 1}), "not an array that begins", id="map"),
    pytest.param(msgpack.packb([]), "not an array that begins", id="empty-array"),
    pytest.param(msgpack.packb(["stop"]), "not an array that begins", id="name"),
    pytest.param(msgpack.packb([True]), "not an array that begins", id="bool-is-no-type"),
    pytest.param(msgpack.packb([99]), "unknown type 99", id="unknown"),
    pytest.param(msgpack.packb([64]), "unknown type 64", id="an-answer"),
    pytest.param(msgpack.packb([1, 0]), "Stop with 1 fields", id="extra-field"),
    pytest.param(b"\x00" * (MAX_REQUEST_BYTES + 1), "at most 4096 bytes", id="oversized"),
    pytest.param(b"\x00" * 100_000, "at most 4096 bytes", id="very-oversized"),
]


@pytest.mark.parametrize(("payload", "reason"), HOSTILE)
def test_server_garbage_gets_a_reason_and_loses_its_connection(
    host: Host, payload: bytes, reason: str
) -> None:
    with host.client() as sock:
        answer = host.ask(sock, payload)
        assert isinstance(answer, Failed)
        assert reason in answer.reason
        assert sock.recv(1) == b""
    assert host.requests == []
    assert host.is_fine()


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(payload=st.binary(min_size=1, max_size=64))
def test_server_any_bytes_get_an_answer(host: Host, payload: bytes) -> None:
    with host.client() as sock:
        assert isinstance(host.ask(sock, payload), Failed | Done)


def test_server_descriptors_in_a_message_are_not_kept(host: Host) -> None:
    before = len(os.listdir("/proc/self/fd"))
    with host.client() as sock:
        rights = (socket.SOL_SOCKET, socket.SCM_RIGHTS, struct.pack("3i", 0, 1, 2))
        sock.sendmsg([encode(Resume())], [rights])
        host.turn()
        assert RESPONSES.decode(sock.recv(4096)) == Done()
    host.turn()
    assert len(os.listdir("/proc/self/fd")) == before


def test_server_client_that_goes_away_is_forgotten(host: Host) -> None:
    host.client().close()
    host.turn()
    assert host.server.client_count == 0


def test_server_client_that_leaves_before_its_answer_is_no_error(host: Host) -> None:
    with host.client() as sock:
        sock.send(encode(Resume()))
    host.turn()
    assert host.server.client_count == 0
    assert host.is_fine()


def test_server_client_that_never_reads_is_dropped(host: Host) -> None:
    with host.client() as sock:
        sock.setblocking(False)
        for _ in range(100_000):
            try:
                sock.send(encode(Resume()))
            except OSError:
                break
            host.turn(1)
        assert host.server.client_count == 0
    assert host.is_fine()


def test_server_pending_answer_comes_later_and_in_order(host: Host) -> None:
    with host.client() as slow, host.client() as fast:
        slow.send(encode(Suspend()))
        slow.send(encode(Resume()))
        host.turn()
        assert host.ask(fast, encode(Resume())) == Done()
        assert host.requests == [Suspend(), Resume()]
        host.pending[0].complete(Failed("no"))
        host.pending[0].complete(Done())
        host.turn()
        assert RESPONSES.decode(slow.recv(4096)) == Failed("no")
        assert RESPONSES.decode(slow.recv(4096)) == Done()


def test_server_pending_answer_that_is_there_at_once(host: Host) -> None:
    pending = Pending()
    pending.complete(Done())
    answers: list[Response] = []
    pending.deliver_to(answers.append)
    assert answers == [Done()]


def test_server_client_that_leaves_while_its_answer_is_pending(host: Host) -> None:
    with host.client() as sock:
        sock.send(encode(Suspend()))
        host.turn()
    host.turn()
    assert host.server.client_count == 0
    with host.client() as other:  # most likely with the same descriptor number
        host.pending[0].complete(Done())
        host.turn()
        assert host.ask(other, encode(PowerButton())) == Failed("the guest has no ACPI")


def test_server_flood_of_connections_is_bounded(host: Host) -> None:
    clients = [host.client() for _ in range(MAX_CLIENTS)]
    with host.client() as late:
        answer = RESPONSES.decode(late.recv(4096))
        assert answer == Failed(f"{MAX_CLIENTS} clients are connected already")
        assert late.recv(1) == b""
    assert host.server.client_count == MAX_CLIENTS
    for client in clients:
        client.close()


def test_server_idle_client_makes_room_only_at_the_bound(host: Host) -> None:
    clients = [host.client() for _ in range(MAX_CLIENTS)]
    host.now += IDLE_SECONDS
    assert host.ask(clients[0], encode(Resume())) == Done()
    assert host.server.client_count == MAX_CLIENTS
    assert host.is_fine()
    assert host.ask(clients[0], encode(Resume())) == Done()
    assert clients[1].recv(1) == b""
    for client in clients:
        client.close()


def test_server_client_that_waits_for_the_end_is_not_idle(host: Host) -> None:
    clients = [host.client() for _ in range(MAX_CLIENTS)]
    for client in clients:
        host.ask(client, encode(Stop()))
    host.now += 100 * IDLE_SECONDS
    with host.client() as late:
        assert isinstance(RESPONSES.decode(late.recv(4096)), Failed)
    for client in clients:
        client.close()


def test_server_other_user_is_refused(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server_module, "peer_credentials", lambda _sock: (1, 4711, 4711))
    with host.client() as sock:
        assert RESPONSES.decode(sock.recv(4096)) == Failed("uid 4711 may not control this VM")
    assert host.server.client_count == 0


class FullTable:
    """A listening socket in a process that has no descriptor left."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock

    def fileno(self) -> int:
        return self._sock.fileno()

    def accept(self) -> tuple[socket.socket, str]:
        raise OSError(errno.EMFILE, "too many open files")


def test_server_without_descriptors_waits_instead_of_spinning(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    timers: list[float] = []
    real_sock = host.bound.sock
    monkeypatch.setattr(host.loop, "call_later", lambda seconds, _call: timers.append(seconds))
    monkeypatch.setattr(host.server._listener, "_sock", FullTable(real_sock))
    with host.client():
        host.turn(20)
    assert timers == [1.0]
    monkeypatch.undo()


def test_server_close_ends_all_connections(tmp_path: Path) -> None:
    host = Host(tmp_path)
    with host.client() as sock:
        host.server.close()
        assert sock.recv(1) == b""
    host.loop.close()
