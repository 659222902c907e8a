# SPDX-License-Identifier: BSD-3-Clause
"""Be a client of the REST API that sends anything, in any pieces, with any descriptors.

One episode is one connection. However its bytes are cut, the same requests come out, what it makes
us keep is bounded, and no descriptor stays open. A good request afterwards is served.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from crosvm_py.api import http
from tests.fuzz.source import one_in, pick, spoil

if TYPE_CHECKING:
    from tests.fuzz.source import Source

GOOD = b"GET /api/v1/vmm.ping HTTP/1.1\r\nHost: localhost\r\n\r\n"
MOST_KEPT = http.MAX_BODY_BYTES + (http.MAX_HEADERS + 2) * (http.MAX_LINE_BYTES + 2)
_LINES = (
    *(b"GET / HTTP/1.1", b"PUT /api/v1/vm.create HTTP/1.0", b"POST / HTTP/1.1", b"GET / HTTP/2.0"),
    *(b"Host: localhost", b"Content-Length: 5", b"Content-Length: 4194305", b"Content-Length: 0"),
    *(b"Transfer-Encoding: chunked", b"Expect: 100-continue", b"Upgrade: h2c", b"", b" folded: x"),
    *(b"a: " + b"b" * 8200, b"CONNECT a:1 HTTP/1.1", b"PRI * HTTP/2.0", b"\x00", b"A" * 8192),
)


class HttpFuzzer:
    """One connection after the other."""

    def __init__(self) -> None:
        self.mutations = 0
        self._fds = len(os.listdir("/proc/self/fd"))

    def episode(self, source: Source) -> None:
        """Send a stream in two ways of cutting it, and compare."""
        stream = _stream(source)
        self.mutations += 1 + stream.count(b"\n")
        whole = serve([stream], source)
        assert whole == serve(_cut(source, stream), source)

    def close(self) -> None:
        """See that no descriptor is left."""
        assert len(os.listdir("/proc/self/fd")) == self._fds


def serve(pieces: list[bytes], source: Source) -> list[http.Event]:
    """Return the events of one connection, without those that depend on how it was cut."""
    connection = http.HttpConnection()
    events: list[http.Event] = []
    for piece in pieces:
        connection.feed(piece, _some_fds(source))
        while (event := connection.next_event()) is not None:
            if isinstance(event, http.HttpRequest):
                event.close()
                event = event._replace(fds=())
            if not isinstance(event, http.Continue):
                events.append(event)
        kept = len(connection._buffer)
        assert kept <= MOST_KEPT, f"{kept} bytes are kept"
    connection.close()
    return events


def _some_fds(source: Source) -> list[int]:
    return [os.eventfd(0) for _ in range(source.below(3))] if one_in(source, 8) else []


def _stream(source: Source) -> bytes:
    kind = source.below(3)
    if kind == 0:
        return spoil(source, GOOD * (1 + source.below(3)))
    if kind == 1:
        return source.data(source.below(200))
    lines = [pick(source, _LINES) for _ in range(source.below(12))]
    ends = (b"\r\n", b"\r\n", b"\r\n", b"\n")
    return b"".join(line + pick(source, ends) for line in lines) + GOOD


def _cut(source: Source, stream: bytes) -> list[bytes]:
    size = (1, 7, 256, 4096)[source.below(4)] if len(stream) < 2000 else 256
    return [stream[at : at + size] for at in range(0, len(stream), size)] or [b""]


def make(_source: Source) -> HttpFuzzer:
    """Return the fuzzer."""
    return HttpFuzzer()
