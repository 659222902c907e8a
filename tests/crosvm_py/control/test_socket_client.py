# SPDX-License-Identifier: BSD-3-Clause
"""A control client with VMs that have ended, do not answer, or send nonsense."""

from __future__ import annotations

import contextlib
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import msgpack
import pytest

from crosvm_py.control import socket_client as client
from crosvm_py.control.socket_client import ControlError, ask
from crosvm_py.requests.catalogue import REQUESTS
from crosvm_py.requests.life import Stop
from crosvm_py.requests.protocol import Done, Failed
from sys_util.errors import ConfigError, HostError
from sys_util.wire import encode

Script = Callable[[socket.socket], None]
Serve = Callable[[Script], str]


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Serve]:
    threads: list[threading.Thread] = []

    def start(script: Script) -> str:
        path = str(tmp_path / "s")
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        listener.bind(path)
        listener.listen()

        def run() -> None:
            with listener, listener.accept()[0] as sock:
                script(sock)

        threads.append(threading.Thread(target=run))
        threads[-1].start()
        return path

    yield start
    for thread in threads:
        thread.join()


def _answer(payload: bytes) -> Script:
    def script(sock: socket.socket) -> None:
        assert REQUESTS.decode(sock.recv(4096)) == Stop()
        sock.send(payload)

    return script


def _read_and_leave(sock: socket.socket) -> None:
    sock.recv(4096)


def _until_client_leaves(sock: socket.socket) -> None:
    while sock.recv(4096):
        pass


def test_ask_done_returns(serve: Serve) -> None:
    ask(serve(_answer(encode(Done()))), Stop())


VM = """
import os, socket, sys
sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
sock.bind(sys.argv[1])
sock.listen()
print("ready", flush=True)
client = sock.accept()[0]
client.recv(4096)
client.send(bytes([0x91, 64]))
client.close()
sys.stdin.read()
"""


@contextlib.contextmanager
def vm_process(path: str) -> Iterator[subprocess.Popen[str]]:
    """Run a VM that answers one request, closes the connection, and lives until its stdin ends."""
    with subprocess.Popen(
        [sys.executable, "-S", "-c", VM, path],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        if process.stdout is not None:
            assert process.stdout.readline() == "ready\n"
        yield process


def test_ask_until_gone_returns_when_the_process_has_ended(tmp_path: Path) -> None:
    with vm_process(str(tmp_path / "s")) as process:
        if process.stdin is not None:
            process.stdin.close()
        ask(str(tmp_path / "s"), Stop(), until_gone=True)
        assert process.wait() == 0


def test_ask_until_gone_is_not_content_with_a_closed_connection(tmp_path: Path) -> None:
    with (
        vm_process(str(tmp_path / "s")),
        pytest.raises(ControlError, match=r"/s: still running after 0\.2 s"),
    ):
        ask(str(tmp_path / "s"), Stop(), until_gone=True, timeout_seconds=0.2)


def test_ask_until_gone_process_out_of_sight_counts_the_connection(
    serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client, "peer_credentials", lambda _sock: (0, 0, 0))
    ask(serve(_answer(encode(Done()))), Stop(), until_gone=True)


def test_ask_failed_raises_the_reason(serve: Serve) -> None:
    with pytest.raises(ControlError, match="/s: the guest is asleep"):
        ask(serve(_answer(encode(Failed("the guest is asleep")))), Stop())


def test_ask_closed_without_answer_raises(serve: Serve) -> None:
    with pytest.raises(ControlError, match="closed the connection without an answer"):
        ask(serve(_read_and_leave), Stop())


def test_ask_nonsense_raises(serve: Serve) -> None:
    with pytest.raises(ControlError, match=r"/s: no answer of a VM of ours: .* unknown type 7"):
        ask(serve(_answer(msgpack.packb([7]))), Stop())


def test_ask_deeply_nested_answer_raises(serve: Serve) -> None:
    with pytest.raises(ControlError, match="more than 8 deep"):
        ask(serve(_answer(b"\x92\x41" + b"\x91" * 1010 + b"\xc0")), Stop())


def test_ask_silent_vm_times_out(serve: Serve) -> None:
    with pytest.raises(ControlError, match=r"no answer within 0\.01 s"):
        ask(serve(_until_client_leaves), Stop(), timeout_seconds=0.01)


def test_ask_vm_that_does_not_end_times_out(serve: Serve) -> None:
    def script(sock: socket.socket) -> None:
        _answer(encode(Done()))(sock)
        _until_client_leaves(sock)

    with pytest.raises(ControlError, match=r"still running after 0\.2 s"):
        ask(serve(script), Stop(), until_gone=True, timeout_seconds=0.2)


def test_ask_missing_socket_raises(tmp_path: Path) -> None:
    with pytest.raises(HostError, match=r"connect to .*/s \(no VM has its control socket there"):
        ask(str(tmp_path / "s"), Stop())


def test_ask_stale_socket_raises(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as sock:
        sock.bind(str(tmp_path / "s"))
    with pytest.raises(HostError, match="the VM that made it is gone"):
        ask(str(tmp_path / "s"), Stop())


def test_ask_file_that_is_no_socket_raises(tmp_path: Path) -> None:
    (tmp_path / "f").touch()
    with pytest.raises(HostError, match=r"connect to .*/f"):
        ask(str(tmp_path / "f"), Stop())


def test_ask_too_long_path_raises() -> None:
    with pytest.raises(ConfigError, match="a socket path has at most 107 bytes"):
        ask("/" + "x" * 200, Stop())
