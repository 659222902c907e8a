# SPDX-License-Identifier: BSD-3-Clause
"""The broker of a vsock device: a process that connects to the host's sockets in its stead.

The warden makes one beside each process of the device, and it lives as long as that. Programs of
the host wait for the guest at ``PATH_<port>``, where PATH is the socket of the device. The broker
is jailed in the directory of PATH, forms the last part of that path itself out of a number, and
hands the connected socket over. So a device that was taken over reaches these sockets and no other.
"""

from __future__ import annotations

import errno
import os
import select
import socket
import stat
import time

from crosvm_py.exit_status import EXIT_BUG, EXIT_HOST
from crosvm_py.socket_path import is_socket_of_a_vm
from devices.virtio.vsock.broker import (
    BROKER_CODEC,
    BROKER_DENIED_HEAD,
    MAX_REPORT_CHARS,
    BrokerFailed,
    Connect,
    Connected,
    NotConnected,
)
from sys_util import linux
from sys_util.channel import Channel
from sys_util.crash import crash_report
from sys_util.errors import ChannelClosed, ChannelFull, ProtocolError, VmmError, describe
from sys_util.typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Sequence

    from jail.plan import JailPlan
    from sys_util.wire import Message

# Connections that may be asked for at once, which is as many as a guest can have, and in a second
# for longer. It is for the sake of the host's programs, which have to accept them all.
BURST: Final = 1024
CONNECTS_PER_SECOND: Final = 1000

# Room for some twenty answers. Descriptors in them that nobody takes count against every process of
# the user (unix(7), ETOOMANYREFS).
_ANSWERS_BYTES: Final = 8192

_NEW: Final = socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC


def run_broker(name: bytes, sock: socket.socket, fds: Sequence[int], jail: JailPlan | None) -> int:
    """Be the broker for ``<name>_<port>``; return the exit status.

    ``sock`` leads to the device. The only one of ``fds`` is the directory of the sockets, which the
    jail makes the root; without a jail it becomes the working directory.
    """
    broker = Broker(sock, name)
    channel = broker.channel
    try:
        linux.set_process_name("vsock-broker")
        if jail is None:
            os.fchdir(fds[0])
        else:
            jail.enter()
        linux.report_denied_calls(channel.fileno(), BROKER_DENIED_HEAD)
        if jail is not None:
            jail.close_door()
        broker.run()
    except ChannelClosed:
        return 0
    except VmmError as error:
        _last_words(channel, describe(error))
        return EXIT_HOST
    except Exception as error:  # noqa: BLE001 - the entry of the process: a bug ends here, named
        _last_words(channel, crash_report(error))
        return EXIT_BUG
    finally:
        channel.close()  # what is freed open asks for its name, which the filter denies
    return 0


def _last_words(channel: Channel, report: str) -> None:
    try:
        channel.send(BrokerFailed(report[:MAX_REPORT_CHARS]))
    except (ChannelClosed, ProtocolError):
        return


class _Pace:
    """A bound on how fast something is done: a token bucket that is full at first."""

    def __init__(self) -> None:
        self._next = 0.0  # when the next one would be due, had they all come at the same pace

    def wait(self) -> None:
        """Sleep until there is a token, and take it."""
        now = time.monotonic()
        self._next = max(self._next, now - BURST / CONNECTS_PER_SECOND) + 1 / CONNECTS_PER_SECOND
        if self._next > now:
            time.sleep(self._next - now)


class Broker:
    """Answer the device's questions, one after the other; nothing is kept between them."""

    def __init__(self, sock: socket.socket, path: bytes) -> None:
        """``path`` gets ``_<port>`` appended; ``sock`` leads to the device and becomes ours."""
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _ANSWERS_BYTES)
        self.channel = Channel(sock, BROKER_CODEC)
        self._path = path
        self._pace = _Pace()
        self._readable = select.poll()
        self._readable.register(sock, select.POLLIN)
        self._writable = select.poll()
        self._writable.register(sock, select.POLLOUT)

    def run(self) -> None:
        """Serve until the device goes.

        Raises:
            ChannelClosed: it has gone.
            ProtocolError: it sent what is no question.
        """
        while True:
            self._readable.poll()
            self.serve()

    def serve(self) -> bool:
        """Answer one question; return whether there was one."""
        received = self.channel.receive()
        if received is None:
            return False
        question, fds = received
        if fds or not isinstance(question, Connect):
            for fd in fds:
                os.close(fd)
            raise ProtocolError("a device sends questions, and no descriptors")
        self._pace.wait()
        try:
            with self._connect(question) as sock:
                self._say(Connected(), [sock.fileno()])
        except OSError as error:
            self._say(NotConnected(error.errno or errno.EIO))
        except ProtocolError as error:  # the kernel lets no more descriptors be on their way
            self._say(NotConnected(getattr(error.__cause__, "errno", None) or errno.EIO))
        return True

    def _connect(self, question: Connect) -> socket.socket:
        """Return the connected socket, the caller's.

        Raises:
            OSError: there is none.
        """
        path = b"%s_%d" % (self._path, question.port)
        found = os.lstat(path)
        # Who follows a link may end at another socket of the directory, such as that of a VM.
        if stat.S_ISLNK(found.st_mode):
            raise OSError(errno.ELOOP, os.strerror(errno.ELOOP))
        if is_socket_of_a_vm(found.st_mode):
            raise OSError(errno.EADDRINUSE, os.strerror(errno.EADDRINUSE))
        kind = socket.SOCK_SEQPACKET if question.for_messages else socket.SOCK_STREAM
        sock = socket.socket(socket.AF_UNIX, kind | _NEW)
        try:
            sock.connect(path)  # at once or not at all (unix(7))
        except OSError:
            sock.close()
            raise
        return sock

    def _say(self, answer: Message, fds: Sequence[int] = ()) -> None:
        """Send an answer, which waits while the device reads none."""
        while True:
            try:
                self.channel.send(answer, fds)
            except ChannelFull:
                self._writable.poll()
            else:
                return
