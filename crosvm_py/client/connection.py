# SPDX-License-Identifier: BSD-3-Clause
"""One call of the REST API, as ch-remote makes it: a connection, a request, an answer."""

from __future__ import annotations

import array
from contextlib import suppress

from crosvm_py.vm_config import json_text
from crosvm_py.vm_config.errors import SchemaError
from sys_util import socket
from sys_util.errors import VmmError
from sys_util.typing import TYPE_CHECKING, Final, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Sequence

# An answer that is longer is none of this API.
MAX_ANSWER_BYTES: Final = 64 << 20

_PIECE_BYTES: Final = 64 * 1024
_HEAD_END: Final = b"\r\n\r\n"
_SUCCESS: Final = frozenset({100, 200, 204})


class ConnectionFailedError(VmmError):
    """Nobody serves the socket, or what comes from there is no answer of the API."""


class ApiError(VmmError):
    """A call that was not carried out.

    ``status`` is that of HTTP; ``causes`` are the reasons, the outermost first. ``body`` is what
    they were read from; there are no causes if it has none.
    """

    def __init__(self, status: int, causes: tuple[str, ...], body: bytes = b"") -> None:
        super().__init__(": ".join(causes) or f"status {status}")
        self.status = status
        self.causes = causes
        self.body = body


class Reply(NamedTuple):
    """The status of an answer, and its body; ``None`` if it says that it has none."""

    status: int
    body: bytes | None


def call(
    path: str,
    method: str,
    endpoint: str,
    body: bytes | None = None,
    fds: Sequence[int] = (),
    *,
    timeout_seconds: float | None = None,
) -> bytes | None:
    """Call an endpoint such as ``vm.info`` and return the body of the answer.

    ``fds`` are duplicated for the server and stay the caller's.

    Raises:
        ApiError: the call failed.
        ConnectionFailedError: nobody answers, or not as the API does.
    """
    request = _request(method, endpoint, body)
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC) as sock:
        sock.settimeout(timeout_seconds)
        try:
            sock.connect(path)
            with suppress(BrokenPipeError):  # the server may have answered before it closed
                _send(sock, request, fds)
            reply = _receive(sock)
        except TimeoutError:
            raise ConnectionFailedError(f"{path}: no answer within {timeout_seconds:g} s") from None
        except OSError as error:
            raise ConnectionFailedError(f"{path}: {error.strerror or error}") from error
    if reply.status not in _SUCCESS:
        raise ApiError(reply.status, _causes(reply.body), reply.body or b"")
    return reply.body


def _request(method: str, endpoint: str, body: bytes | None) -> bytes:
    head = f"{method} /api/v1/{endpoint} HTTP/1.1\r\nHost: localhost\r\nAccept: */*\r\n"
    if body is None:
        return f"{head}\r\n".encode()
    return f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body


def _send(sock: socket.socket, request: bytes, fds: Sequence[int]) -> None:
    rights = array.array("i", fds).tobytes()
    ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, rights)] if fds else []
    sent = sock.sendmsg([request], ancillary, socket.MSG_NOSIGNAL)
    if sent < len(request):
        sock.sendall(request[sent:], socket.MSG_NOSIGNAL)


def _receive(sock: socket.socket) -> Reply:
    data = bytearray()
    while (end := data.find(_HEAD_END)) < 0:
        _read_more(sock, data)
    status, length = _read_head(bytes(data[:end]))
    start = end + len(_HEAD_END)
    if length is None:
        return Reply(status, None)
    while len(data) < start + length:
        _read_more(sock, data)
    return Reply(status, bytes(data[start : start + length]))


def _read_more(sock: socket.socket, data: bytearray) -> None:
    piece = sock.recv(_PIECE_BYTES)
    if not piece:
        raise ConnectionFailedError("the server has closed the connection")
    data += piece
    if len(data) > MAX_ANSWER_BYTES:
        raise ConnectionFailedError(f"an answer of more than {MAX_ANSWER_BYTES} bytes")


def _read_head(head: bytes) -> tuple[int, int | None]:
    lines = head.split(b"\r\n")
    words = lines[0].split(b" ")
    if not words[0].startswith(b"HTTP/1.") or len(words) < 2 or not words[1].isdigit():
        raise ConnectionFailedError("what answers is no server of the API")
    length = None
    for line in lines[1:]:
        name, _, value = line.partition(b":")
        if name.lower() == b"content-length":
            if not value.strip().isdigit():
                raise ConnectionFailedError("an answer without a proper length")
            length = int(value)
    return int(words[1][:9]), length


def _causes(body: bytes | None) -> tuple[str, ...]:
    try:
        found = json_text.parse(body or b"null")
    except SchemaError:
        return ()
    if not isinstance(found, list) or not all(isinstance(each, str) for each in found):
        return ()
    return tuple(found)
