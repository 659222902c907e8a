# SPDX-License-Identifier: BSD-3-Clause
"""The outer end of a port: run a command in the host and pass its streams through."""

from __future__ import annotations

import os
import select
import signal
import threading
import time
from typing import TYPE_CHECKING, Final

from tests.kvmhost.protocol import (
    CHUNK_BYTES,
    Decoder,
    Frame,
    FrameError,
    Kind,
    RunRequest,
    decode_status,
    encode,
    encode_clock,
)

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable

STATUS_TIMEOUT: Final = 124
STATUS_HOST_GONE: Final = 125
NONCE_BYTES: Final = 8
ENTROPY_BYTES: Final = 32
HELLO_RETRY_SECONDS: Final = 1.0


class HostGoneError(Exception):
    """The test host ended or does not answer."""


class Connection:
    """A port that this client holds. One thread may send while another receives."""

    def __init__(self, sock: socket.socket, lock: int) -> None:
        self._socket = sock
        self._lock_fd = lock  # its lock keeps other clients off this port
        self._decoder = Decoder()
        self._sending = threading.Lock()

    def close(self) -> None:
        """Give the port back; the agent kills what still runs on it."""
        self._socket.close()
        if self._lock_fd >= 0:
            os.close(self._lock_fd)
            self._lock_fd = -1

    def send(self, kind: Kind, payload: bytes = b"") -> None:
        """Send one frame.

        Raises:
            HostGoneError: nobody is there any more.
        """
        try:
            with self._sending:
                self._socket.sendall(encode(kind, payload))
        except OSError as error:
            raise HostGoneError("the host is gone") from error

    def receive(self, timeout: float | None) -> list[Frame]:
        """Return the frames that came, none if none came within ``timeout`` seconds.

        Raises:
            HostGoneError: the host ended.
        """
        if not select.select([self._socket], [], [], timeout)[0]:
            return []
        try:
            data = self._socket.recv(CHUNK_BYTES)
        except OSError as error:
            raise HostGoneError("the host is gone") from error
        if not data:
            raise HostGoneError("the host ended")
        return self._decoder.feed(data)

    def hello(self, timeout: float) -> None:
        """Wait until the agent answers, and have it end what a client before us left.

        Raises:
            HostGoneError: no answer in time.
        """
        deadline = time.monotonic() + timeout
        nonce = os.urandom(NONCE_BYTES)
        while time.monotonic() < deadline:
            self.send(Kind.HELLO, nonce)
            retry = min(deadline, time.monotonic() + HELLO_RETRY_SECONDS)
            while (left := retry - time.monotonic()) > 0:
                try:
                    if Frame(Kind.HELLO, nonce) in self.receive(left):
                        return
                except FrameError:  # the rest of what the client before us did not read
                    continue
        raise HostGoneError(f"no answer from the host in {timeout:.0f} s")

    def set_clock(self) -> None:
        """Give a freshly restored host the time, and randomness of its own."""
        self.send(Kind.CLOCK, encode_clock(time.time(), os.urandom(ENTROPY_BYTES)))

    def send_stdin(self, data: bytes) -> None:
        """Send input to the running command."""
        for start in range(0, len(data), CHUNK_BYTES):
            self.send(Kind.STDIN, data[start : start + CHUNK_BYTES])

    def signal(self, number: int) -> None:
        """Signal the running command; SIGKILL ends all that it started."""
        self.send(Kind.SIGNAL, bytes([number]))

    def wait(self, sink: Callable[[Kind, bytes], object], timeout: float) -> int:
        """Pass output on until the command ends, and return its exit status.

        Raises:
            TimeoutError: the command took longer; it has been killed.
            HostGoneError: the host ended.
        """
        deadline = time.monotonic() + timeout
        while (left := deadline - time.monotonic()) > 0:
            for frame in self.receive(left):
                if frame.kind is Kind.EXIT:
                    return decode_status(frame.payload)
                sink(frame.kind, frame.payload)
        self.signal(signal.SIGKILL)
        raise TimeoutError(f"not finished in {timeout:.0f} s")


def forward_input(connection: Connection, fd: int) -> threading.Thread:
    """Pass ``fd`` on as the command's stdin, in a thread of its own."""

    def forward() -> None:
        try:
            while data := os.read(fd, CHUNK_BYTES):
                connection.send(Kind.STDIN, data)
            connection.send(Kind.EOF)
        except HostGoneError:
            return

    thread = threading.Thread(target=forward, daemon=True)
    thread.start()
    return thread


def run_attached(
    connection: Connection, request: RunRequest, *, timeout: float, stdin: int | None = None
) -> int:
    """Run a command with this process's stdout and stderr, and ``stdin`` if given.

    Ctrl-C goes to the command first; a second one ends the wait.
    """
    connection.send(Kind.RUN, request.encode())
    if stdin is None:
        connection.send(Kind.EOF)
    else:
        forward_input(connection, stdin)
    try:
        return connection.wait(_write_through, timeout)
    except KeyboardInterrupt:
        connection.signal(signal.SIGINT)
        return connection.wait(_write_through, timeout)


def _write_through(kind: Kind, data: bytes) -> None:
    left = memoryview(data)
    while left:
        left = left[os.write(1 if kind is Kind.STDOUT else 2, left) :]
