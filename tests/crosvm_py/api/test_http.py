# SPDX-License-Identifier: BSD-3-Clause
"""The REST API's HTTP: what is a request, what is refused, and in which bytes we answer."""

from __future__ import annotations

import os
from contextlib import suppress

import h11
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from crosvm_py.api.http import (
    CONTINUE,
    MAX_BODY_BYTES,
    MAX_FDS,
    MAX_HEADERS,
    MAX_LINE_BYTES,
    TOO_MANY_CONNECTIONS,
    BadRequest,
    Continue,
    Event,
    HttpConnection,
    HttpRequest,
    answer,
)

PING = b"GET /api/v1/vmm.ping HTTP/1.1\r\nHost: localhost\r\nAccept: */*\r\n\r\n"
PINGED = HttpRequest("GET", "/api/v1/vmm.ping", b"")


def events(*pieces: bytes) -> list[Event]:
    """Return everything that comes out of a connection."""
    connection = HttpConnection()
    found: list[Event] = []
    for piece in pieces:
        connection.feed(piece)
        while (event := connection.next_event()) is not None:
            found.append(event)
    return found


def put(length: object, body: bytes = b"", *more: bytes) -> bytes:
    head = f"PUT /api/v1/vm.create HTTP/1.1\r\nContent-Length: {length}\r\n".encode()
    return head + b"".join(line + b"\r\n" for line in more) + b"\r\n" + body


@pytest.mark.parametrize("size", [1, 2, 256, 10_000])
def test_request_arrives_in_pieces_of_any_size(size: int) -> None:
    stream = put(5, b"{\r\n\r}") + PING + b"\r\n" + put(0)
    pieces = [stream[at : at + size] for at in range(0, len(stream), size)]
    assert events(*pieces) == [
        HttpRequest("PUT", "/api/v1/vm.create", b"{\r\n\r}"),
        PINGED,
        HttpRequest("PUT", "/api/v1/vm.create", b""),
    ]


@pytest.mark.parametrize(
    "head",
    [
        pytest.param(PING.replace(b"1.1", b"1.0"), id="HTTP/1.0"),
        pytest.param(b"GET /api/v1/vmm.ping HTTP/1.1\r\n\r\n", id="no Host"),
        pytest.param(PING.replace(b"\r\n\r\n", b"\r\nUpgrade: h2c\r\n\r\n"), id="Upgrade"),
        pytest.param(
            PING.replace(b"\r\n\r\n", b"\r\nUpgrade: h2c\r\nConnection: Upgrade\r\n\r\n"),
            id="Upgrade that would be taken",
        ),
        pytest.param(
            PING.replace(b"\r\n\r\n", b"\r\nAccept-Encoding: identity\r\n\r\n"), id="identity"
        ),
        pytest.param(
            PING.replace(b"\r\n\r\n", b"\r\nx: " + b"y" * (MAX_LINE_BYTES - 4) + b"\r\n\r\n"),
            id="longest line",
        ),
        pytest.param(
            PING.replace(b"\r\n\r\n", b"\r\n" + b"x: y\r\n" * (MAX_HEADERS - 2) + b"\r\n"),
            id="most headers",
        ),
    ],
)
def test_good_request_is_read(head: bytes) -> None:
    assert events(head + PING) == [PINGED, PINGED]


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        pytest.param(b"POST / HTTP/1.1\r\nContent-Length: 3\r\n\r\nabc", "method POST", id="POST"),
        pytest.param(b"HEAD / HTTP/1.1\r\n\r\n", "method HEAD", id="HEAD"),
        pytest.param(b"CONNECT a:1 HTTP/1.1\r\n\r\n", "method CONNECT", id="CONNECT"),
        pytest.param(b"PRI * HTTP/2.0\r\n\r\n", "no request", id="HTTP/2 preface"),
        pytest.param(b"GET / HTTP/2.0\r\n\r\n", "request line", id="HTTP/2.0"),
        pytest.param(b"GET / HTTP/1.2\r\n\r\n", "Invalid HTTP version", id="HTTP/1.2"),
        pytest.param(b"GET / HTTP/0.9\r\n\r\n", "request line", id="HTTP/0.9"),
        pytest.param(b"GET /\r\n\r\n", "request line", id="no version"),
        pytest.param(b"GET / ICE/1.0\r\n\r\n", "ICE", id="ICE"),
        pytest.param(b"GET  / HTTP/1.1\r\n\r\n", "request line", id="two spaces"),
        pytest.param(b"get / HTTP/1.1\r\n\r\n", "Invalid method", id="lower case"),
        pytest.param(b"nonsense\r\n\r\n", "Invalid method", id="nonsense"),
        pytest.param(b"\x16\x03\x01\x00\r\n\r\n", "Invalid method", id="TLS"),
        pytest.param(b"GET / HTTP/1.1\nA: b\n\n", "CRLF", id="bare line feeds"),
        pytest.param(b"GET / HTTP/1.1\r\nA: b\r\n c\r\n\r\n", "whitespace", id="folded line"),
        pytest.param(b"GET / HTTP/1.1\r\nA: \0\r\n\r\n", "Invalid header", id="NUL"),
        pytest.param(b"GET / HTTP/1.1\r\nA : b\r\n\r\n", "Invalid header", id="space before colon"),
        pytest.param(
            b"PUT / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n",
            "Transfer-Encoding",
            id="chunked",
        ),
        pytest.param(
            b"PUT / HTTP/1.1\r\nTransfer-Encoding: chunked\r\nContent-Length: 0\r\n\r\n",
            "Transfer-Encoding",
            id="chunked with a length",
        ),
        pytest.param(
            b"PUT / HTTP/1.1\r\nContent-Length: 0\r\nContent-Length: 0\r\n\r\n",
            "Duplicate Content-Length",
            id="two lengths",
        ),
        pytest.param(put("-1"), "Content-Length", id="negative length"),
        pytest.param(put("0x5"), "Content-Length", id="hexadecimal length"),
        pytest.param(put("1, 1"), "Content-Length", id="list of lengths"),
        pytest.param(put(""), "Content-Length", id="empty length"),
        pytest.param(put(1 << 64), "Content-Length", id="length above 64 bits"),
        pytest.param(
            put(MAX_BODY_BYTES + 1, b"x" * (MAX_BODY_BYTES + 1)), "4194304 is the most", id="4 MiB"
        ),
        pytest.param(put(3, b"abc", b"Expect: 200-ok"), "Expect", id="Expect"),
        pytest.param(
            b"GET / HTTP/1.1\r\nAccept-Encoding: identity; q=0\r\n\r\n", "identity", id="identity"
        ),
        pytest.param(b"GET /" + b"x" * MAX_LINE_BYTES + b"\r\n\r\n", "more than 8192", id="line"),
        pytest.param(
            b"GET / HTTP/1.1\r\n" + b"x: y\r\n" * (MAX_HEADERS + 1) + b"\r\n",
            "more than 100 headers",
            id="header flood",
        ),
        pytest.param(
            b"GET / HTTP/1.1\r\n" + b"x: y\r\n" * 100_000 + b"\r\n", "headers", id="long flood"
        ),
    ],
)
@pytest.mark.parametrize("size", [1000, 65_536])
def test_bad_request_is_refused_once_and_the_next_is_served(
    data: bytes, reason: str, size: int
) -> None:
    stream = data + PING
    refused, *rest = events(*(stream[at : at + size] for at in range(0, len(stream), size)))
    assert isinstance(refused, BadRequest)
    assert reason in refused.reason
    assert rest == [PINGED]


def test_line_without_an_end_is_refused_at_once_and_not_kept() -> None:
    connection = HttpConnection()
    for _ in range(100):
        connection.feed(b"x" * 65_536)
        if (event := connection.next_event()) is not None:
            assert isinstance(event, BadRequest)
    assert len(connection._buffer) < 3
    connection.feed(b"\r")
    connection.feed(b"\n\r\n" + PING)
    assert connection.next_event() == PINGED


def test_half_a_request_is_waited_for() -> None:
    assert events(PING[:-1]) == []
    assert events(put(5, b"1234")) == []


def test_client_that_asks_is_told_to_go_on_once() -> None:
    head = put(3, b"", b"Expect: 100-continue")
    assert events(head, b"ab", b"c") == [
        Continue(),
        HttpRequest("PUT", "/api/v1/vm.create", b"abc"),
    ]
    assert events(head + b"abc") == [HttpRequest("PUT", "/api/v1/vm.create", b"abc")]


# Descriptors


def open_fds(count: int) -> list[int]:
    return [os.eventfd(0) for _ in range(count)]


def is_open(fd: int) -> bool:
    with suppress(OSError):
        os.fstat(fd)
        return True
    return False


def test_fds_belong_to_the_request_with_any_piece_of_which_they_came() -> None:
    fds, connection = open_fds(3), HttpConnection()
    connection.feed(put(3)[:10], fds[:1])
    connection.feed(put(3)[10:], fds[1:2])
    assert connection.next_event() is None
    connection.feed(b"abc" + PING, fds[2:])
    request, after = connection.next_event(), connection.next_event()
    assert isinstance(request, HttpRequest)
    assert request.fds == tuple(fds)
    assert after == PINGED
    request.close()
    assert not any(map(is_open, fds))


def test_surplus_fds_are_closed() -> None:
    fds, connection = open_fds(MAX_FDS + 1), HttpConnection()
    connection.feed(b"", fds)
    assert [is_open(fd) for fd in fds] == [True] * MAX_FDS + [False]
    connection.close()
    assert not any(map(is_open, fds))


@pytest.mark.parametrize("data", [b"nonsense\r\n\r\n", b"GET /" + b"x" * 9000, put("x")])
def test_fds_of_a_bad_request_are_closed(data: bytes) -> None:
    fds, connection = open_fds(2), HttpConnection()
    connection.feed(data, fds)
    assert isinstance(connection.next_event(), BadRequest)
    assert not any(map(is_open, fds))


# Answers


@pytest.mark.parametrize(
    ("made", "expected"),
    [
        (
            answer(200, b"{}"),
            (
                b"HTTP/1.1 200 \r\nServer: Cloud Hypervisor API\r\nConnection: keep-alive\r\n"
                b"Content-Type: application/json\r\nContent-Length: 2\r\n\r\n{}"
            ),
        ),
        (
            answer(204),
            b"HTTP/1.1 204 \r\nServer: Cloud Hypervisor API\r\nConnection: keep-alive\r\n\r\n",
        ),
        (
            answer(200, b""),
            (
                b"HTTP/1.1 200 \r\nServer: Cloud Hypervisor API\r\nConnection: keep-alive\r\n"
                b"Content-Length: 0\r\n\r\n"
            ),
        ),
        (
            CONTINUE,
            b"HTTP/1.1 100 \r\nServer: Cloud Hypervisor API\r\nConnection: keep-alive\r\n\r\n",
        ),
        (
            TOO_MANY_CONNECTIONS,
            (
                b"HTTP/1.1 503\r\nServer: Firecracker API\r\nConnection: close\r\n"
                b'Content-Length: 40\r\n\r\n{ "error": "Too many open connections" }'
            ),
        ),
    ],
)
def test_answers_have_the_bytes_of_cloud_hypervisor(made: bytes, expected: bytes) -> None:
    assert made == expected


# Anything

_TEXT = st.sampled_from(
    [
        *(b"GET", b"PUT", b"POST", b"/", b"/api/v1/vm.info", b"http://x/y", b"HTTP/1.1", b" "),
        *(b"HTTP/1.0", b"\r\n", b"\n", b"\r", b": ", b"Host: a\r\n", b"Content-Length: 2\r\n"),
        *(b"Transfer-Encoding: chunked\r\n", b"\x00", b"\xff", b"\t", b"x" * 8190, b"{}"),
        *(b"Expect: 100-continue\r\n", b"\r\n\r\n", b"Connection: upgrade\r\nUpgrade: x\r\n"),
    ]
)
_STREAM = st.lists(_TEXT | st.binary(max_size=6), max_size=14).map(b"".join)


@settings(max_examples=60, deadline=None)
@given(stream=_STREAM, size=st.integers(1, 300))
def test_pieces_make_no_difference(stream: bytes, size: int) -> None:
    whole = [event for event in events(stream) if not isinstance(event, Continue)]
    pieces = [stream[at : at + size] for at in range(0, len(stream), size)]
    assert [event for event in events(*pieces) if not isinstance(event, Continue)] == whole


def h11_reads(head: bytes) -> h11.Request | None:
    """Return the request that h11 finds in a head, or None if it refuses it."""
    connection = h11.Connection(h11.SERVER)
    connection.receive_data(head)
    with suppress(h11.RemoteProtocolError):
        event = connection.next_event()
        return event if isinstance(event, h11.Request) else None
    return None


_HEADERS = st.lists(
    st.sampled_from([b"Host: a", b"A: b", b"a:b\t", b"Content-Length: 0", b"Content-Length: 07"])
    | st.binary(max_size=8),
    max_size=4,
)


@settings(max_examples=60, deadline=None)
@given(
    method=st.sampled_from([b"GET", b"PUT", b"get", b"G T", b""]),
    target=st.sampled_from([b"/", b"/a?b=c", b"http://x/a", b"*", b"", b"a b"])
    | st.binary(max_size=5).map(lambda tail: b"/" + tail),
    headers=_HEADERS,
)
@example(method=b"PUT", target=b"/api/v1/vm.boot", headers=[b"Host: a", b"Content-Length: 0"])
def test_what_we_accept_h11_reads_in_the_same_way(
    method: bytes, target: bytes, headers: list[bytes]
) -> None:
    lines = [method + b" " + target + b" HTTP/1.1", b"Host: localhost", *headers]
    head = b"\r\n".join(lines) + b"\r\n\r\n"
    ours = next(iter(events(head)), None)
    theirs = h11_reads(head)
    names = [line.partition(b":")[0].lower() for line in headers]
    if isinstance(ours, HttpRequest) and theirs is not None:
        assert (theirs.method, theirs.target) == (ours.method.encode(), ours.target.encode())
    if isinstance(ours, HttpRequest) and b"host" not in names and b"\r\n\r\n" not in head[:-4]:
        assert theirs is not None
