# SPDX-License-Identifier: BSD-3-Clause
"""The messages between a vsock device and its broker, and the device's end of their channel.

The filter of the device process forbids it to make sockets. When the guest wants to connect to a
port of the host, the device asks its broker, a process that can reach the sockets for such ports
and nothing else. It asks one question at a time. The answer is a connected socket, or the reason
why there is none.
"""

from __future__ import annotations

import os

from devices.virtio.vsock.packet import SocketType
from sys_util import socket
from sys_util.channel import Channel
from sys_util.errors import ChannelClosed, ProtocolError, VmmError
from sys_util.facts import fact
from sys_util.typing import TYPE_CHECKING, ClassVar, Final
from sys_util.wire import U32, Codec, boolean, integer, text

if TYPE_CHECKING:
    from collections.abc import Callable

    from devices.virtio.context import DeviceContext
    from sys_util.wire import Check

    # The socket, or None and the error number (errno(3)).
    OnAnswer = Callable[[socket.socket | None, int], None]

MAX_REPORT_CHARS: Final = 8192
_MAX_ERRNO: Final = 4095

UNIX_TYPES: Final = {
    SocketType.STREAM: socket.SOCK_STREAM,
    SocketType.SEQPACKET: socket.SOCK_SEQPACKET,
}


@fact
class Connect:
    """Connect to the listener of ``port``, by a SOCK_SEQPACKET socket or by a stream."""

    TYPE: ClassVar[int] = 1
    FIELDS: ClassVar[tuple[Check, ...]] = (U32, boolean)
    port: int
    for_messages: bool


@fact
class Connected:
    """The descriptor beside this message is the connected socket."""

    TYPE: ClassVar[int] = 32
    FIELDS: ClassVar[tuple[Check, ...]] = ()


@fact
class NotConnected:
    """There is no connection; ``error`` is the error number of connect(2).

    EAGAIN: the backlog of the listener is full. EADDRINUSE: the socket of that name belongs to a
    VM. ELOOP: the name is a symbolic link.
    """

    TYPE: ClassVar[int] = 33
    FIELDS: ClassVar[tuple[Check, ...]] = (integer(1, _MAX_ERRNO),)
    error: int


@fact
class BrokerDenied:
    """The broker's last message, from its handler of SIGSYS: the filter trapped a system call."""

    TYPE: ClassVar[int] = 34
    FIELDS: ClassVar[tuple[Check, ...]] = (U32,)
    number: int


@fact
class BrokerFailed:
    """The broker's last message: it ends by a bug of ours or an error of the host."""

    TYPE: ClassVar[int] = 35
    FIELDS: ClassVar[tuple[Check, ...]] = (text(MAX_REPORT_CHARS),)
    report: str


# What the handler of SIGSYS writes before the call's number: an array of two, and the type.
BROKER_DENIED_HEAD: Final = bytes([0x92, BrokerDenied.TYPE])

BROKER_CODEC: Final = Codec((Connect,))
DEVICE_CODEC: Final = Codec((Connected, NotConnected, BrokerDenied, BrokerFailed))


class Broker:
    """The device's end of the channel. Owns its socket.

    Without a broker the device cannot serve its guest, and only the warden can make one. So when
    the broker ends or breaks the protocol, the device process ends too; the warden restarts both.
    """

    def __init__(self, sock: socket.socket, on_answer: OnAnswer) -> None:
        """``on_answer`` is called once for each question and takes over the socket."""
        self._channel = Channel(sock, DEVICE_CODEC)
        self._on_answer = on_answer
        self._asked: SocketType | None = None
        self._context: DeviceContext

    def attach(self, context: DeviceContext) -> None:
        """Start to listen for answers."""
        self._context = context
        context.add_fd(self._channel.fileno(), self._on_readable)

    def close(self) -> None:
        """Close the channel; the broker ends."""
        self._context.remove_fd(self._channel.fileno())
        self._channel.close()

    @property
    def is_asked(self) -> bool:
        """Whether a question has no answer yet; until then ``ask`` must not be called."""
        return self._asked is not None

    def ask(self, port: int, socket_type: SocketType) -> None:
        """Ask for a connection; the answer comes later.

        Raises:
            VmmError: the broker has gone, or reads nothing.
        """
        self._asked = socket_type
        try:
            self._channel.send(Connect(port, socket_type == SocketType.SEQPACKET))
        except ChannelClosed:
            return  # ``_on_readable`` reads its last message, and then finds its end
        except ProtocolError as error:
            raise VmmError(f"broker: {error}") from error

    def _on_readable(self, _events: int) -> None:
        try:
            received = self._channel.receive()
        except ChannelClosed:
            raise VmmError("the broker of its connections has ended") from None
        except ProtocolError as error:
            raise VmmError(f"broker: {error}") from error
        if received is None:
            return
        message, fds = received
        match message, fds:
            case Connected(), [fd] if self._asked is not None:
                unix_type, self._asked = UNIX_TYPES[self._asked], None
                self._on_answer(socket.socket(socket.AF_UNIX, unix_type, 0, fd), 0)
            case NotConnected(error_number), [] if self._asked is not None:
                self._asked = None
                self._on_answer(None, error_number)
            case BrokerDenied(number), []:
                raise VmmError(f"broker: killed by seccomp: system call {number}")
            case BrokerFailed(report), []:
                raise VmmError(f"broker: {report}")
            case _:
                for fd in fds:
                    os.close(fd)
                words = f"unexpected {type(message).__name__} with {len(fds)} descriptors"
                raise VmmError(f"broker: {words}")
