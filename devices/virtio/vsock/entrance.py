# SPDX-License-Identifier: BSD-3-Clause
"""How host processes reach the guest: they connect to the device's socket.

Such a process writes ``CONNECT <port>\\n`` and is then connected with that port of the guest.
"""

from __future__ import annotations

from devices.virtio.vsock.packet import SocketType
from sys_util import socket
from sys_util.log import get_logger
from sys_util.stranger import brief
from sys_util.typing import TYPE_CHECKING, Final, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from devices.virtio.context import DeviceContext

    # socket, its type, the guest's port, data that followed the line
    OnConnect = Callable[[socket.socket, SocketType, int, bytes], None]

# More than the 19 bytes of "CONNECT ", ten digits and a newline.
MAX_LINE_BYTES: Final = 32

# How many connections one turn of the loop accepts.
_ACCEPTS_PER_TURN: Final = 64

# How long not to accept after the host had no descriptor or memory for one more connection.
_REST_SECONDS: Final = 0.5

_log = get_logger("devices.virtio.vsock").limited()


def parse_connect(line: bytes) -> int:
    """Return the port of a ``CONNECT <port>`` line.

    Raises:
        ValueError: it is no such line.
    """
    words = line.decode("ascii").split()
    if len(words) != 2 or words[0].upper() != "CONNECT" or not words[1].isdigit():
        raise ValueError(f"{brief(line)} is not CONNECT and a port")
    port = int(words[1])
    if port > 0xFFFF_FFFF:
        raise ValueError(f"port {port} is above 32 bits")
    return port


class _Greeting(NamedTuple):
    """A connected host process that has not sent its CONNECT line yet."""

    sock: socket.socket
    socket_type: SocketType
    line: bytearray

    def read(self) -> tuple[int, bytes] | None:
        """Return the port and the data that followed the line, None while it is not complete.

        Raises:
            ValueError: this will never be a CONNECT line.
            OSError: the process has closed the connection.
        """
        try:
            data = self.sock.recvmsg(MAX_LINE_BYTES, 0, socket.MSG_DONTWAIT)[0]
        except BlockingIOError:
            return None
        self.line.extend(data)
        line, newline, early = self.line.partition(b"\n")
        if not newline:
            if not data or len(line) >= MAX_LINE_BYTES:
                raise ValueError(f"{brief(bytes(line))} has no end")
            return None
        if len(line) >= MAX_LINE_BYTES or (early and self.socket_type == SocketType.SEQPACKET):
            raise ValueError(f"{brief(bytes(self.line))} is too long")
        return parse_connect(bytes(line)), bytes(early)


class Entrance:
    """The device's listening sockets, and connections that have not sent their CONNECT line."""

    def __init__(
        self, listeners: Sequence[tuple[socket.socket, SocketType]], on_connect: OnConnect
    ) -> None:
        """Take over ``listeners``; ``on_connect`` takes over the socket that it gets."""
        self._listeners = tuple(listeners)
        self._on_connect = on_connect
        self._greetings: dict[int, _Greeting] = {}  # by descriptor, oldest first
        self._context: DeviceContext
        self._has_room: Callable[[], bool]

    def attach(self, context: DeviceContext, has_room: Callable[[], bool]) -> None:
        """Start to listen. ``has_room`` tells whether one more connection is allowed."""
        self._context = context
        self._has_room = has_room
        for listener in self._listeners:
            self._listen(listener)

    def close(self) -> None:
        """Stop listening, and close the connections that have not sent their line."""
        for fd in tuple(self._greetings):
            self._dismiss(fd)
        for sock, _ in self._listeners:
            self._context.remove_fd(sock.fileno())
            sock.close()

    @property
    def waiting(self) -> int:
        """How many connections have not sent their CONNECT line yet."""
        return len(self._greetings)

    def _listen(self, listener: tuple[socket.socket, SocketType]) -> None:
        self._context.add_fd(listener[0].fileno(), lambda _events: self._on_listener(listener))

    def _on_listener(self, listener: tuple[socket.socket, SocketType]) -> None:
        for _ in range(_ACCEPTS_PER_TURN):
            try:
                sock, _ = listener[0].accept()
            except BlockingIOError:
                return
            except OSError as error:
                _log.warning("cannot accept a connection: %s", error.strerror)
                self._context.remove_fd(listener[0].fileno())
                self._context.call_later(_REST_SECONDS, lambda: self._listen(listener))
                return
            if not self._has_room() and not self._dismiss_oldest():
                _log.warning("a process of the host is turned away: too many connections")
                sock.close()
                continue
            self._greet(_Greeting(sock, listener[1], bytearray()))

    def _greet(self, greeting: _Greeting) -> None:
        fd = greeting.sock.fileno()
        self._greetings[fd] = greeting
        self._context.add_fd(fd, lambda _events: self._on_line(fd))

    def _on_line(self, fd: int) -> None:
        greeting = self._greetings[fd]
        try:
            asked = greeting.read()
        except (ValueError, OSError) as error:
            _log.debug("a process of the host: %s", error)
            self._dismiss(fd)
            return
        if asked is not None:
            self._context.remove_fd(fd)
            del self._greetings[fd]
            self._on_connect(greeting.sock, greeting.socket_type, *asked)

    def _dismiss_oldest(self) -> bool:
        """Close the connection that has been silent for longest; return whether there was one."""
        for fd in self._greetings:
            self._dismiss(fd)
            return True
        return False

    def _dismiss(self, fd: int) -> None:
        self._context.remove_fd(fd)
        self._greetings.pop(fd).sock.close()
