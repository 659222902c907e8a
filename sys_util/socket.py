# SPDX-License-Identifier: BSD-3-Clause
"""The names of ``socket`` that this project uses, without the 1.5 ms that importing it takes.

Python's own module makes an enumeration of every constant and imports ``selectors``. Here the
constants are numbers. A type checker sees Python's own module.
"""

from __future__ import annotations

import os

from sys_util.typing import TYPE_CHECKING

if TYPE_CHECKING:
    from socket import AF_INET as AF_INET
    from socket import AF_INET6 as AF_INET6
    from socket import AF_UNIX as AF_UNIX
    from socket import CMSG_SPACE as CMSG_SPACE
    from socket import MSG_CMSG_CLOEXEC as MSG_CMSG_CLOEXEC
    from socket import MSG_CTRUNC as MSG_CTRUNC
    from socket import MSG_DONTWAIT as MSG_DONTWAIT
    from socket import MSG_NOSIGNAL as MSG_NOSIGNAL
    from socket import MSG_PEEK as MSG_PEEK
    from socket import MSG_TRUNC as MSG_TRUNC
    from socket import SCM_RIGHTS as SCM_RIGHTS
    from socket import SHUT_RD as SHUT_RD
    from socket import SHUT_WR as SHUT_WR
    from socket import SO_ACCEPTCONN as SO_ACCEPTCONN
    from socket import SO_PEERCRED as SO_PEERCRED
    from socket import SO_REUSEADDR as SO_REUSEADDR
    from socket import SO_SNDBUF as SO_SNDBUF
    from socket import SOCK_CLOEXEC as SOCK_CLOEXEC
    from socket import SOCK_DGRAM as SOCK_DGRAM
    from socket import SOCK_NONBLOCK as SOCK_NONBLOCK
    from socket import SOCK_SEQPACKET as SOCK_SEQPACKET
    from socket import SOCK_STREAM as SOCK_STREAM
    from socket import SOL_SOCKET as SOL_SOCKET
    from socket import inet_ntop as inet_ntop
    from socket import inet_pton as inet_pton
    from socket import socket as socket
    from socket import socketpair as socketpair
else:
    import _socket
    from _socket import *  # noqa: F403 - what Python's own module passes on, too

    class socket(_socket.socket):  # noqa: N801 - as Python names it
        """A socket, which a ``with`` statement closes."""

        __slots__ = ("__weakref__",)

        def __enter__(self) -> socket:
            return self

        def __exit__(self, *_: object) -> None:
            self.close()

        def accept(self) -> tuple[socket, object]:
            """Accept a connection; the new socket blocks, and is closed on exec."""
            fd, address = self._accept()
            return socket(self.family, self.type, self.proto, fileno=fd), address

        def dup(self) -> socket:
            """Return a new socket for a duplicate of the descriptor, which is closed on exec."""
            made = socket(self.family, self.type, self.proto, fileno=_socket.dup(self.fileno()))
            made.settimeout(self.gettimeout())
            return made

        def get_inheritable(self) -> bool:
            """Return whether a program that is executed gets the descriptor."""
            return os.get_inheritable(self.fileno())

        def set_inheritable(self, inheritable: bool) -> None:
            """Let a program that is executed get the descriptor, or not."""
            os.set_inheritable(self.fileno(), inheritable)

    def socketpair(
        family: int = _socket.AF_UNIX, kind: int = _socket.SOCK_STREAM, proto: int = 0
    ) -> tuple[socket, socket]:
        """Return two connected sockets, which are closed on exec."""
        made = _socket.socketpair(family, kind, proto)
        one, other = (socket(family, kind, proto, each.detach()) for each in made)
        return one, other
