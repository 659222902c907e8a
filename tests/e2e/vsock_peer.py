#!/usr/bin/env python3
# SPDX-License-Identifier: BSD-3-Clause
"""The host's end of vsock connections: vsock_peer.py unix:PATH|vsock:CID VERB PORT [ARG].

Verbs: send FILE and save FILE to whom the guest connects; hold COUNT connections of the guest and
answer when all of them are there; keep COUNT connections of the guest until they end; crowd COUNT:
so many connections to the guest at once, echoed.
"""

from __future__ import annotations

import os
import socket
import sys
from typing import Final

BLOCK_BYTES: Final = 65536
SECONDS: Final = 150.0


def say(word: str) -> None:
    sys.stdout.write(f"{word}\n")
    sys.stdout.flush()


class UnixSide:
    """AF_UNIX sockets beside the device's own, and its CONNECT line."""

    def __init__(self, path: str, kind: socket.SocketKind) -> None:
        self._path = path
        self._kind = kind

    def listen(self, port: int, backlog: int) -> socket.socket:
        sock = socket.socket(socket.AF_UNIX, self._kind)
        sock.bind(f"{self._path}_{port}")
        sock.listen(backlog)
        say("listening")
        return sock

    def begin(self, port: int) -> socket.socket:
        sock = socket.socket(socket.AF_UNIX, self._kind)
        suffix = ".seqpacket" if self._kind == socket.SOCK_SEQPACKET else ""
        sock.connect(self._path + suffix)
        sock.sendall(b"CONNECT %d\n" % port)
        return sock

    def finish(self, sock: socket.socket) -> None:
        answer = b""
        while not answer.endswith(b"\n"):
            part = sock.recv(1 if self._kind == socket.SOCK_STREAM else 100)
            if not part:
                raise ConnectionRefusedError(f"{answer!r} and the end, instead of OK")
            answer += part
        if not answer.startswith(b"OK "):
            raise ConnectionRefusedError(f"{answer!r} instead of OK")

    def close(self, port: int) -> None:
        os.unlink(f"{self._path}_{port}")


class KernelSide:
    """AF_VSOCK sockets."""

    def __init__(self, cid: int, kind: socket.SocketKind) -> None:
        self._cid = cid
        self._kind = kind

    def listen(self, port: int, backlog: int) -> socket.socket:
        sock = socket.socket(socket.AF_VSOCK, self._kind)
        sock.bind((socket.VMADDR_CID_ANY, port))
        sock.listen(backlog)
        say("listening")
        return sock

    def begin(self, port: int) -> socket.socket:
        sock = socket.socket(socket.AF_VSOCK, self._kind)
        sock.settimeout(SECONDS)
        sock.connect((self._cid, port))
        return sock

    def finish(self, sock: socket.socket) -> None:
        """Nothing is missing."""

    def close(self, port: int) -> None:
        """Nothing is left."""


Side = UnixSide | KernelSide


def accept(listener: socket.socket) -> socket.socket:
    listener.settimeout(SECONDS)
    sock, _ = listener.accept()
    sock.settimeout(SECONDS)
    return sock


def send(side: Side, port: int, path: str) -> None:
    with side.listen(port, 1) as listener, accept(listener) as sock, open(path, "rb") as file:
        while block := file.read(BLOCK_BYTES):
            sock.sendall(block)


def save(side: Side, port: int, path: str) -> None:
    with side.listen(port, 1) as listener, accept(listener) as sock, open(path, "wb") as file:
        while block := sock.recv(BLOCK_BYTES):
            file.write(block)


def hold(side: Side, port: int, count: int) -> None:
    # Linux gives a connection two seconds, which an emulated processor can make of a short queue.
    with side.listen(port, count) as listener:
        held = [accept(listener) for _ in range(count)]
    for sock in held:
        with sock, sock.makefile("rwb") as file:
            file.write(b"answer to " + file.readline())


def keep(side: Side, port: int, count: int) -> None:
    with side.listen(port, count) as listener:
        kept = [accept(listener) for _ in range(count)]
    say("connected")
    for sock in kept:
        with sock:
            try:
                data = sock.recv(1)
            except ConnectionResetError:
                data = b""
        say("ended" if not data else "spoke")


def crowd(side: Side, port: int, count: int) -> None:
    socks = [side.begin(port) for _ in range(count)]
    for sock in socks:
        sock.settimeout(SECONDS)
        side.finish(sock)
    noise = [os.urandom(1000) for _ in socks]
    for sock, data in zip(socks, noise, strict=True):
        sock.sendall(data)
    for sock, data in zip(socks, noise, strict=True):
        with sock:
            sock.shutdown(socket.SHUT_WR)
            echo = b""
            while part := sock.recv(4096):
                echo += part
        if echo != data:
            raise ValueError(f"{len(echo)} bytes, not what was sent")


def main() -> None:
    where, verb, port, argument = sys.argv[1:]
    scheme, _, place = where.partition(":")
    kind = socket.SOCK_SEQPACKET if scheme.endswith("-seqpacket") else socket.SOCK_STREAM
    side: Side = (
        UnixSide(place, kind) if scheme.startswith("unix") else KernelSide(int(place), kind)
    )
    if verb in ("send", "save"):
        (send if verb == "send" else save)(side, int(port), argument)
    else:
        {"hold": hold, "keep": keep, "crowd": crowd}[verb](side, int(port), int(argument))
    if verb != "crowd":
        side.close(int(port))
    say("done")


if __name__ == "__main__":
    main()
