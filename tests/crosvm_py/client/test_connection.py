# SPDX-License-Identifier: BSD-3-Clause
"""A call over a real socket, answered by whatever a server may say."""

from __future__ import annotations

import socket
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest

from crosvm_py.client.connection import ApiError, ConnectionFailedError, call

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@contextmanager
def server(path: Path, *pieces: bytes, reads: bool = True) -> Iterator[list[bytes]]:
    """Answer one call with these pieces; yield what was asked, if the server reads it."""
    asked: list[bytes] = []
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(path))
        listening.listen()

        def serve() -> None:
            sock, _ = listening.accept()
            with sock:
                if reads:
                    asked.append(sock.recv(65536))
                for piece in pieces:
                    sock.sendall(piece)

        thread = threading.Thread(target=serve)
        thread.start()
        yield asked
        thread.join()


OK = b"HTTP/1.1 200 \r\nContent-Length: 2\r\n\r\n{}"


def test_request_has_the_bytes_of_ch_remote(tmp_path: Path) -> None:
    with server(tmp_path / "s", *(OK[at : at + 1] for at in range(len(OK)))) as asked:
        assert call(str(tmp_path / "s"), "PUT", "vm.resize", b"{}") == b"{}"
    assert asked == [
        (
            b"PUT /api/v1/vm.resize HTTP/1.1\r\nHost: localhost\r\nAccept: */*\r\n"
            b"Content-Length: 2\r\n\r\n{}"
        )
    ]


def test_server_that_answers_and_closes_at_once_is_heard(tmp_path: Path) -> None:
    too_many = b"HTTP/1.1 503\r\nContent-Length: 2\r\n\r\n{}"
    with server(tmp_path / "s", too_many, reads=False), pytest.raises(ApiError) as caught:
        call(str(tmp_path / "s"), "PUT", "vm.create", b"x" * (4 << 20))
    assert caught.value.status == 503


def test_answer_without_a_body_is_none(tmp_path: Path) -> None:
    with server(tmp_path / "s", b"HTTP/1.1 204 \r\n\r\n"):
        assert call(str(tmp_path / "s"), "PUT", "vm.boot") is None


@pytest.mark.parametrize(
    ("body", "causes"),
    [(b'["a","b"]', ("a", "b")), (b"", ()), (b"[1]", ()), (b"{", ()), (b"[" * 9999, ())],
)
def test_refusal_is_an_error_with_its_causes(
    tmp_path: Path, body: bytes, causes: tuple[str, ...]
) -> None:
    head = b"HTTP/1.1 404 \r\nContent-Length: %d\r\n\r\n" % len(body)
    with server(tmp_path / "s", head + body), pytest.raises(ApiError) as caught:
        call(str(tmp_path / "s"), "PUT", "vm.boot")
    assert (caught.value.status, caught.value.causes) == (404, causes)


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (b"", "closed the connection"),
        (b"HTTP/1.1 200 \r\n", "closed the connection"),
        (b"HTTP/1.1 200 \r\nContent-Length: 9\r\n\r\n{}", "closed the connection"),
        (b"HTTP/1.1 200 \r\nContent-Length: x\r\n\r\n", "without a proper length"),
        (b"hello\r\n\r\n", "no server of the API"),
        (b"HTTP/1.1\r\n\r\n", "no server of the API"),
    ],
)
def test_answer_that_is_none_is_an_error(tmp_path: Path, answer: bytes, reason: str) -> None:
    path = tmp_path / "s"
    with server(path, answer), pytest.raises(ConnectionFailedError, match=reason):
        call(str(path), "GET", "vm.info")


def test_nobody_there_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ConnectionFailedError, match="No such file"):
        call(str(tmp_path / "nobody"), "GET", "vm.info")
