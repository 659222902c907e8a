# SPDX-License-Identifier: BSD-3-Clause
"""One HTTP/1.x connection of a client of the REST API, without any input or output of its own.

Bytes and descriptors go in, requests come out, and ``answer`` makes the bytes that go back. Lines
are found here, so that a client cannot make us keep more than our limits; each complete head is
then read by llhttp (through httptools). What llhttp lets pass and we do not serve is refused here:
other methods than four, other versions than 1.0 and 1.1, chunked bodies.

The format of the answers is that of Cloud Hypervisor's micro-http, byte by byte: its clients search
for these very bytes. A connection stays open after an error, too.
"""

from __future__ import annotations

import os

from httptools import HttpParserError, HttpParserUpgrade, HttpRequestParser

from sys_util.typing import TYPE_CHECKING, Final, NamedTuple, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Iterable

MAX_LINE_BYTES: Final = 8192
MAX_HEADERS: Final = 100
MAX_BODY_BYTES: Final = 4 << 20
# The most descriptors that the kernel passes with one message (SCM_MAX_FD).
MAX_FDS: Final = 253

METHODS: Final = frozenset({"GET", "PUT", "PATCH", "DELETE"})
_VERSIONS: Final = frozenset({b"HTTP/1.0", b"HTTP/1.1"})

# Kata's generated client, and others in Go.
_GO_AGENTS: Final = (b"OpenAPI-Generator/", b"Go-http-client/")

CONTINUE: Final = b"HTTP/1.1 100 \r\nServer: Cloud Hypervisor API\r\nConnection: keep-alive\r\n\r\n"
# What a client gets for which there is no connection any more; then it is disconnected.
TOO_MANY_CONNECTIONS: Final = (
    b"HTTP/1.1 503\r\nServer: Firecracker API\r\nConnection: close\r\n"
    b'Content-Length: 40\r\n\r\n{ "error": "Too many open connections" }'
)


class HttpRequest(NamedTuple):
    """One complete request. Whoever takes it owns its ``fds``, and closes them.

    Clients in Go tell their users the reason phrase of an answer, so ``reads_phrase`` is true.
    """

    method: str
    target: str
    body: bytes
    fds: tuple[int, ...] = ()
    reads_phrase: bool = False

    def close(self) -> None:
        """Close the descriptors that came with it."""
        for fd in self.fds:
            os.close(fd)


class BadRequest(NamedTuple):
    """The client sent something that we do not accept as a request; ``reason`` says why."""

    reason: str


class Continue(NamedTuple):
    """The client waits for ``CONTINUE`` before it sends the body."""


Event: TypeAlias = "HttpRequest | BadRequest | Continue"


class _Head:
    """What llhttp finds in one head; its methods are the callbacks of httptools."""

    def __init__(self) -> None:
        self.target = b""
        self.headers: list[tuple[bytes, bytes]] = []
        self.complete = False

    def on_url(self, url: bytes) -> None:
        """Take the target, or a piece of it."""
        self.target += url

    def on_header(self, name: bytes, value: bytes) -> None:
        """Take a header."""
        self.headers.append((name.lower(), value.strip(b" \t")))

    def on_headers_complete(self) -> None:
        """Note that this was a whole head."""
        self.complete = True


class _RefusedError(Exception):
    """A request that we do not serve; the message says why. Its body is ``skip`` bytes long."""

    def __init__(self, reason: str, skip: int = 0) -> None:
        super().__init__(reason)
        self.skip = skip


class HttpConnection:
    """Reads the requests of one client. Owns the descriptors it was fed until it passes them on."""

    def __init__(self) -> None:
        self._buffer = bytearray()
        self._scanned = 0  # the beginning of the line that is not complete yet
        self._lines = 0
        self._spoiled = False  # the rest of this head is dropped
        self._skip = 0  # how many bytes of a body are still to be dropped
        self._head: HttpRequest | None = None
        self._length = 0
        self._wants_continue = False
        self._fds: list[int] = []

    def feed(self, data: bytes, fds: Iterable[int] = ()) -> None:
        """Take what the client sent. Surplus descriptors are closed."""
        for fd in fds:
            if len(self._fds) < MAX_FDS:
                self._fds.append(fd)
            else:
                os.close(fd)
        self._buffer += data

    def next_event(self) -> Event | None:
        """Return what the client asks for next, or None until it has sent more.

        Answer each event before the next call, so that answers keep the order of the requests.
        """
        while True:
            if self._skip:
                dropped = min(self._skip, len(self._buffer))
                del self._buffer[:dropped]
                self._skip -= dropped
                if self._skip:
                    return None
            if self._head is not None:
                return self._body(self._head)
            end = self._find_end()
            if isinstance(end, BadRequest):
                return end
            if not end:
                return None
            head = bytes(self._buffer[:end])
            self._restart(end)
            if self._spoiled:
                self._spoiled = False
                continue
            try:
                self._head, self._length, self._wants_continue = _read_head(head)
            except _RefusedError as refused:
                self._skip = refused.skip
                self._close_fds()
                return BadRequest(str(refused))

    def close(self) -> None:
        """Close the descriptors that belong to no request yet."""
        self._close_fds()

    def _body(self, head: HttpRequest) -> Event | None:
        if len(self._buffer) < self._length:
            if self._wants_continue:
                self._wants_continue = False
                return Continue()
            return None
        body = bytes(self._buffer[: self._length])
        del self._buffer[: self._length]
        self._head = None
        fds, self._fds = tuple(self._fds), []
        return head._replace(body=body, fds=fds)

    def _find_end(self) -> int | BadRequest:
        """Return where the head in the buffer ends, or 0 if it is not complete.

        An empty line ends it, even one that has no carriage return: llhttp refuses that head.
        """
        while True:
            newline = self._buffer.find(b"\n", self._scanned)
            length = (len(self._buffer) if newline < 0 else newline) - self._scanned
            if length > MAX_LINE_BYTES:
                if not self._spoiled:
                    return self._spoil(f"a line of more than {MAX_LINE_BYTES} bytes")
                if newline < 0:  # two bytes stay, so that the line will not look empty
                    self._forget(len(self._buffer) - 2)
            if newline < 0:
                return 0
            is_empty = length == 0 or (length == 1 and self._buffer[self._scanned] == 0x0D)
            self._scanned = newline + 1
            if is_empty and not self._lines:
                self._forget(newline + 1)  # empty lines before a request (RFC 9112 §2.2)
            elif is_empty:
                return newline + 1
            else:
                self._lines += 1
                if self._spoiled:
                    self._forget(newline + 1)
                elif self._lines > MAX_HEADERS + 1:
                    return self._spoil(f"more than {MAX_HEADERS} headers")

    def _spoil(self, reason: str) -> BadRequest:
        self._spoiled = True
        self._lines = max(self._lines, 1)
        self._close_fds()
        return BadRequest(reason)

    def _forget(self, count: int) -> None:
        """Drop the first bytes of the buffer, which the scan has passed."""
        del self._buffer[:count]
        self._scanned = 0

    def _restart(self, end: int) -> None:
        """Begin with a new head at ``end``."""
        self._forget(end)
        self._lines = 0

    def _close_fds(self) -> None:
        for fd in self._fds:
            os.close(fd)
        self._fds = []


def answer(status: int, body: bytes | None = None) -> bytes:
    """Return the bytes of an answer. A body is JSON; ``None`` is for answers without any."""
    head = (
        f"HTTP/1.1 {status:d} \r\nServer: Cloud Hypervisor API\r\nConnection: keep-alive\r\n"
    ).encode()
    if body is None:
        return head + b"\r\n"
    if not body:
        return head + b"Content-Length: 0\r\n\r\n"
    length = f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    return head + length.encode() + body


def with_phrase(data: bytes) -> bytes:
    """Return the answer with the phrase by which Kata sees that it asked too early.

    It looks for the phrase in the status line, where Cloud Hypervisor has none.
    """
    early = b"HTTP/1.1 429 "
    return early + b"Too Many Requests" + data[len(early) :] if data.startswith(early) else data


def _read_head(data: bytes) -> tuple[HttpRequest, int, bool]:
    """Return the request, the length of its body, and whether it waits for ``CONTINUE``.

    Raises:
        _RefusedError: it is none that we serve.
    """
    head = _Head()
    parser = HttpRequestParser(head)
    try:
        parser.feed_data(data)
    except HttpParserUpgrade:
        pass  # we go on with this protocol, as the client must expect (RFC 9110 §7.8)
    except HttpParserError as error:
        raise _RefusedError(f"{error}") from None
    if not head.complete:
        raise _RefusedError("no request")
    headers = head.headers
    if any(name == b"transfer-encoding" for name, _ in headers):
        raise _RefusedError("Transfer-Encoding, where only Content-Length is read")
    length = _length([value for name, value in headers if name == b"content-length"])
    method = parser.get_method().decode("ascii", "replace")
    if method not in METHODS:
        raise _RefusedError(f"method {method}", length)
    words = data.split(b"\r\n", 1)[0].split(b" ")
    if len(words) != 3 or words[2] not in _VERSIONS:
        raise _RefusedError("a request line other than METHOD TARGET HTTP/1.1", length)
    if length > MAX_BODY_BYTES:
        raise _RefusedError(f"a body of {length} bytes, where {MAX_BODY_BYTES} is the most", length)
    expected = [value.lower() for name, value in headers if name == b"expect"]
    if any(value != b"100-continue" for value in expected):
        raise _RefusedError("an Expect other than 100-continue", length)
    if any(
        value.replace(b" ", b"").lower() == b"identity;q=0"
        for name, value in headers
        if name == b"accept-encoding"
    ):
        raise _RefusedError("Accept-Encoding: identity;q=0", length)
    target = head.target.decode("latin-1")
    is_go = any(name == b"user-agent" and value.startswith(_GO_AGENTS) for name, value in headers)
    request = HttpRequest(method, target, b"", reads_phrase=is_go)
    return request, length, bool(expected) and length > 0


def _length(values: list[bytes]) -> int:
    if len(values) > 1:
        raise _RefusedError("two Content-Length headers")
    if not values:
        return 0
    if not values[0].isdigit() or len(values[0]) > 20:
        raise _RefusedError("a Content-Length that is no number")
    return int(values[0])
