# SPDX-License-Identifier: BSD-3-Clause
"""Send messages and file descriptors between two processes, over a SOCK_SEQPACKET pair (unix(7)).

Neither side ever waits for the other. A message that does not fit into the socket's buffer is an
error, because the receiver did not read in time. ``receive`` returns ``None`` if there is no
message.
"""

from __future__ import annotations

import array
import os

from sys_util import socket
from sys_util.errors import ChannelClosed, ChannelFull, ProtocolError
from sys_util.typing import TYPE_CHECKING, Final
from sys_util.wire import MAX_MESSAGE_BYTES, Codec, Message, encode

if TYPE_CHECKING:
    from collections.abc import Sequence

# Enough for two eventfds of each of 64 queues. The kernel allows 253 (SCM_MAX_FD).
MAX_MESSAGE_FDS: Final = 130
_FLAGS: Final = socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL
_FD_BYTES: Final = array.array("i").itemsize


class Channel:
    """One end of a channel. Owns its socket."""

    def __init__(self, sock: socket.socket, codec: Codec) -> None:
        sock.setblocking(False)
        self._sock = sock
        self._codec = codec

    def fileno(self) -> int:
        """Return the descriptor to poll, which the channel owns."""
        return self._sock.fileno()

    def send(self, message: Message, fds: Sequence[int] = ()) -> None:
        """Send one message; ``fds`` are duplicated for the receiver and stay the caller's.

        Raises:
            ChannelClosed: the other side has gone, or ``close`` was called.
            ChannelFull: it does not read what it is sent.
            ProtocolError: the kernel does not pass the message on.
        """
        payload = encode(message)
        try:
            if fds:
                rights = array.array("i", fds).tobytes()
                self._sock.sendmsg([payload], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, rights)])
            else:
                # The policy of a device allows no sendmsg, which can pass descriptors.
                self._sock.send(payload, _FLAGS)
        except BlockingIOError as error:
            raise ChannelFull("the peer does not read its messages") from error
        except (BrokenPipeError, ConnectionResetError) as error:
            raise ChannelClosed from error
        except OSError as error:
            if self._sock.fileno() < 0:
                raise ChannelClosed from error
            raise ProtocolError(f"no message reaches the peer: {error.strerror}") from error

    def receive(self) -> tuple[Message, list[int]] | None:
        """Take the next message and its descriptors, which the caller owns; ``None`` if none came.

        Raises:
            ChannelClosed: the other side has gone, and all of its messages were taken.
            ProtocolError: the message breaks the protocol; its descriptors are closed.
        """
        try:
            payload, ancillary, flags = self._receive_raw()
        except BlockingIOError:
            return None
        except OSError as error:
            raise ChannelClosed from error
        fds = _received_fds(ancillary)
        if not payload and not fds:
            raise ChannelClosed
        try:
            if flags & socket.MSG_TRUNC:
                raise ProtocolError("message larger than any of ours")
            if flags & socket.MSG_CTRUNC:
                raise ProtocolError("a message lost descriptors: ulimit -n may allow too few")
            return self._codec.decode(payload), fds
        except ProtocolError:
            for fd in fds:
                os.close(fd)
            raise

    def _receive_raw(self) -> tuple[bytes, list[tuple[int, int, bytes]], int]:
        room = socket.CMSG_SPACE(MAX_MESSAGE_FDS * _FD_BYTES)
        arguments = (MAX_MESSAGE_BYTES + 1, room, socket.MSG_CMSG_CLOEXEC)
        try:
            payload, ancillary, flags, _ = self._sock.recvmsg(*arguments)
        except ConnectionResetError:
            # The peer ended before it had read all that we sent. The kernel reports that once, and
            # only then returns what the peer had sent.
            payload, ancillary, flags, _ = self._sock.recvmsg(*arguments)
        return payload, ancillary, flags

    def close(self) -> None:
        """Close the socket; the other side sees the end."""
        self._sock.close()


def _received_fds(ancillary: list[tuple[int, int, bytes]]) -> list[int]:
    fds = array.array("i")
    for level, kind, data in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            fds.frombytes(data[: len(data) - len(data) % _FD_BYTES])
    return fds.tolist()


def socket_pair() -> tuple[socket.socket, socket.socket]:
    """Return the two ends of a new channel, close-on-exec."""
    return socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
