# SPDX-License-Identifier: BSD-3-Clause
"""Attempts to have the broker of a vsock device connect to what is none of the device's business.

The device may ask for any port, and gets whoever listens there for the guest. In the directory lie
sockets whose names are those of ports and which are for somebody else.
"""

from __future__ import annotations

import errno
import os
import socket
import struct
import time
from typing import TYPE_CHECKING, Final

from crosvm_py.socket_path import SocketUse, bind_control_socket, bind_socket
from devices.virtio.vsock.broker import DEVICE_CODEC, Connect, NotConnected
from sys_util.wire import encode
from tests.breakout.attempt import Attempt, any_of, refuse
from tests.breakout.hands import Refused, address, call

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from tests.breakout.attempt import Cell

GROUP: Final = "network"
ONLY: Final = frozenset({"vsock"})

CONTROL, ENTRANCE, LINK_BESIDE, LINK_OUTSIDE, LINK_TO_CONTROL = range(7, 12)
LISTENED: Final = 52
_PORTS: Final = (0, 1, 0xFF, 0xFFFF, 0x10000, 0x7FFF_FFFF, 0x8000_0000, 0xFFFF_FFFF)

_FLAGS: Final = socket.MSG_DONTWAIT | socket.MSG_CMSG_CLOEXEC
_SENDS: Final = socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL
_PATIENCE_SECONDS: Final = 30.0
_CONTROL_BYTES: Final = 24  # of one descriptor (cmsg(3))


def lay_out(path: Path) -> list[int]:
    """Put the sockets of others beside that at ``path``; return what is to be kept open."""
    folder = path.parent
    kept = [
        bind_control_socket(f"{path}_{CONTROL}").sock,
        bind_control_socket(str(folder / "control")).sock,
        bind_socket(f"{path}_{ENTRANCE}", SocketUse("--vsock", socket.SOCK_STREAM)).sock,
        _listen(str(folder / "agent")),
        _listen(f"{folder}.agent"),
        _listen(f"{path}_{LISTENED}"),
    ]
    for port, target in (
        (LINK_BESIDE, "agent"),
        (LINK_OUTSIDE, f"../{folder.name}.agent"),
        (LINK_TO_CONTROL, "control"),
    ):
        os.symlink(target, f"{path}_{port}")
    return [sock.detach() for sock in kept]


def _listen(path: str) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX)
    sock.bind(path)
    os.chmod(path, 0o777)
    sock.listen()
    return sock


def ask(cell: Cell, port: int, *, for_messages: bool = False) -> None:
    """Ask the broker for a connection; it is there when this returns.

    Raises:
        Refused: it is not.
    """
    broker = cell.files[-1]
    question = encode(Connect(port, for_messages))
    call("sendto", broker, question, len(question), _SENDS, 0, 0)
    data, control = bytearray(100), bytearray(_CONTROL_BYTES)
    vector = struct.pack("QQ", address(data), len(data))
    header = bytearray(
        struct.pack("QIxxxxQQQQIxxxx", 0, 0, address(vector), 1, address(control), len(control), 0)
    )
    size = _receive(broker, header)
    (control_size,) = struct.unpack_from("Q", header, 40)
    if control_size:
        call("close", struct.unpack_from("i", control, 16)[0])
        return
    answer = DEVICE_CODEC.decode(bytes(data[:size]))
    assert isinstance(answer, NotConnected)
    raise refuse("recvmsg", answer.error)


def _receive(fd: int, header: bytearray) -> int:
    deadline = time.monotonic() + _PATIENCE_SECONDS
    while True:
        try:
            return call("recvmsg", fd, header, _FLAGS)
        except Refused as refused:
            if refused.error != errno.EAGAIN or time.monotonic() > deadline:
                raise


def asks(*ports: int) -> Callable[[Cell], object]:
    """Ask for each port as a stream and as messages; one connection is a break-out."""

    def act(cell: Cell) -> None:
        ask_one = [
            lambda port=port, kind=kind: ask(cell, port, for_messages=kind)
            for port in ports
            for kind in (False, True)
        ]
        any_of(ask_one)

    return act


def _attempt(name: str, *ports: int) -> Attempt:
    return Attempt(GROUP, f"have the broker {name}", asks(*ports), only=ONLY)


ATTEMPTS: Final[Sequence[Attempt]] = (
    _attempt("connect to a control socket", CONTROL),
    _attempt("connect to the socket of another VM", ENTRANCE),
    _attempt("follow a link to a socket beside", LINK_BESIDE),
    _attempt("follow a link out of the directory", LINK_OUTSIDE),
    _attempt("follow a link to a control socket", LINK_TO_CONTROL),
    _attempt("connect where nobody listens", *_PORTS),
)
