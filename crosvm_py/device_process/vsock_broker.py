# SPDX-License-Identifier: BSD-3-Clause
"""The broker of a vsock device: a process that connects to the host's sockets for the device.

The warden makes a broker for each process of the device, and it ends with that process. Programs on
the host listen for the guest at ``PATH_<port>``, where PATH is the socket of the device. The broker
is jailed in the directory of PATH. It gets a port from the device, builds the name of the socket
itself, and sends the connected socket back. So even a device that a guest has taken over reaches
only these sockets.
"""

from __future__ import annotations

import errno
import os
import select
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
from sys_util import linux, socket
from sys_util.channel import Channel
from sys_util.crash import crash_report
from sys_util.errors import ChannelClosed, ChannelFull, ProtocolError, VmmError, describe
from sys_util.typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Sequence

    from jail.plan import JailPlan
    from sys_util.wire import Message

# How many connections a device may ask for at once (as many as a guest can have), and per second in
# the long run. This protects the programs on the host, which have to accept all of them.
BURST: Final = 1024
CONNECTS_PER_SECOND: Final = 1000

# Room for some twenty answers. It is small because descriptors that wait in a socket count against
# all processes of the user (unix(7), ETOOMANYREFS).
_ANSWERS_BYTES: Final = 8192

_NEW: Final = socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC


def run_broker(name: bytes, sock: socket.socket, fds: Sequence[int], jail: JailPlan | None) -> int:
    """Run as the broker for ``<name>_<port>``; return the exit status.

    ``sock`` is the channel to the device. ``fds`` has one descriptor, the directory of the sockets;
    the jail makes it the root directory, and without a jail it becomes the working directory.
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
            jail.load_filter()
        broker.run()
    except ChannelClosed:
        return 0
    except VmmError as error:
        _report(channel, describe(error))
        return EXIT_HOST
    except Exception as error:  # noqa: BLE001 - process entry: report every bug
        _report(channel, crash_report(error))
        return EXIT_BUG
    finally:
        # A socket that is freed while open makes Python warn, and that calls getsockname, which
        # the filter denies.
        channel.close()
    return 0


def _report(channel: Channel, report: str) -> None:
    try:
        channel.send(BrokerFailed(report[:MAX_REPORT_CHARS]))
    except (ChannelClosed, ProtocolError):
        return


class _Pace:
    """A limit on the rate of connections: a token bucket that is full at first."""

    def __init__(self) -> None:
        self._next = 0.0  # when the next connection is due if all come at CONNECTS_PER_SECOND

    def wait(self) -> None:
        """Sleep until there is a token, and take it."""
        now = time.monotonic()
        self._next = max(self._next, now - BURST / CONNECTS_PER_SECOND) + 1 / CONNECTS_PER_SECOND
        if self._next > now:
            time.sleep(self._next - now)


class Broker:
    """Answer the device's questions, one at a time; no state is kept between them."""

    def __init__(self, sock: socket.socket, path: bytes) -> None:
        """``path`` gets ``_<port>`` appended; ``sock`` is the channel to the device, now ours."""
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _ANSWERS_BYTES)
        self.channel = Channel(sock, BROKER_CODEC)
        self._path = path
        self._pace = _Pace()
        self._readable = select.poll()
        self._readable.register(sock, select.POLLIN)
        self._writable = select.poll()
        self._writable.register(sock, select.POLLOUT)

    def run(self) -> None:
        """Serve until the device process ends.

        Raises:
            ChannelClosed: the device process has ended.
            ProtocolError: it sent something else than a question.
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
        except ProtocolError as error:  # too many descriptors are in flight (unix(7))
            self._say(NotConnected(getattr(error.__cause__, "errno", None) or errno.EIO))
        return True

    def _connect(self, question: Connect) -> socket.socket:
        """Return the connected socket; the caller owns it.

        Raises:
            OSError: nothing listens there, or it is a link or a socket of a VM.
        """
        path = b"%s_%d" % (self._path, question.port)
        found = os.lstat(path)
        # A link could lead to another socket in the directory, such as the control socket of a VM.
        if stat.S_ISLNK(found.st_mode):
            raise OSError(errno.ELOOP, os.strerror(errno.ELOOP))
        if is_socket_of_a_vm(found.st_mode):
            raise OSError(errno.EADDRINUSE, os.strerror(errno.EADDRINUSE))
        kind = socket.SOCK_SEQPACKET if question.for_messages else socket.SOCK_STREAM
        sock = socket.socket(socket.AF_UNIX, kind | _NEW)
        try:
            sock.connect(path)  # never blocks: it succeeds or fails at once (unix(7))
        except OSError:
            sock.close()
            raise
        return sock

    def _say(self, answer: Message, fds: Sequence[int] = ()) -> None:
        """Send an answer; wait while the channel is full because the device reads nothing."""
        while True:
            try:
                self.channel.send(answer, fds)
            except ChannelFull:
                self._writable.poll()
            else:
                return
