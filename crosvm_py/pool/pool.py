# SPDX-License-Identifier: BSD-3-Clause
"""The pool: keeps monitors waiting, and hands each client of its socket over to one of them.

It reads nothing that a client sends and keeps nothing of a run but the connection to the client, on
which it tells if a signal kills the monitor; a monitor that ends by itself tells its status itself.
"""

from __future__ import annotations

import os
import select
import sys
import time
from contextlib import suppress

from crosvm_py.exit_status import describe_end
from crosvm_py.pool import protocol
from crosvm_py.pool.kernels import prepare_kernel
from crosvm_py.socket_path import SocketUse, bind_socket, peer_credentials
from sys_util import linux, signal, socket
from sys_util.channel import Channel, socket_pair
from sys_util.errors import ChannelClosed, ConfigError, HostError, ProtocolError
from sys_util.event_loop import EventLoop
from sys_util.log import get_logger
from sys_util.typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from crosvm_py.pool.kernels import Kernel
    from crosvm_py.socket_path import BoundSocket

log = get_logger("crosvm.pool")


# What a monitor gets of the pool's environment; its client's comes later.
_KEPT_VARIABLES: Final = ("PATH", "HOME", "XDG_CACHE_HOME")
# A run that has just begun needs the processors more than the monitor that replaces its own.
_REPLACE_SECONDS: Final = 0.1
# How long no client is accepted after the host has refused it.
_PAUSE_SECONDS: Final = 1.0
_FIRST_BACK_OFF_SECONDS: Final = 0.5
_MAX_BACK_OFF_SECONDS: Final = 60.0
_ALL_SIGNALS: Final = signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}
_USE: Final = SocketUse("pool", socket.SOCK_SEQPACKET)


class _Monitor:
    """A monitor that has not been reaped yet. Owns its channel, its pidfd and its client."""

    def __init__(self, pid: int, channel: Channel) -> None:
        self.pid = pid
        self.pidfd = os.pidfd_open(pid)
        self.channel: Channel | None = channel
        self.client: Channel | None = None
        self.is_ready = False
        self.has_run = False  # it took the order of its client

    @property
    def is_idle(self) -> bool:
        """Whether it waits for a client."""
        return self.is_ready and self.client is None and self.channel is not None


class Pool:
    """Serves one socket with ``size`` waiting monitors until it is told to stop."""

    def __init__(
        self, bound: BoundSocket, size: int, loop: EventLoop, kernels: Sequence[Kernel] = ()
    ) -> None:
        """Take over ``bound``. Every monitor gets ``kernels``, whose descriptors stay open."""
        self._bound = bound
        self._size = size
        self._loop = loop
        self._kernels = kernels
        self.monitors: list[_Monitor] = []
        self._starts_at = 0.0  # no monitor is started before that
        self.back_off_seconds = 0.0
        self._announced = False
        self._listen()
        self._start_next()

    def close(self) -> None:
        """Remove the socket and let waiting monitors end; those that run a VM go on."""
        self._bound.unlink()
        self._bound.close()
        for monitor in self.monitors:
            if monitor.channel is not None:
                monitor.channel.close()

    def _listen(self) -> None:
        self._loop.add(self._bound.sock.fileno(), self._on_client)

    def _on_client(self, _events: int) -> None:
        try:
            sock, _ = self._bound.sock.accept()
        except BlockingIOError:
            return  # it has gone
        except OSError as error:  # too many descriptors, say: clients wait in the backlog
            log.warning("no client can be accepted now: %s", error.strerror)
            self._loop.remove(self._bound.sock.fileno())
            self._loop.call_later(_PAUSE_SECONDS, self._listen)
            return
        with sock:
            pid, uid, _ = peer_credentials(sock)
            if uid != os.geteuid() or pid in (0, os.getpid()) or _has_ended(sock):
                return
            self._hand_over(sock)

    def _hand_over(self, sock: socket.socket) -> None:
        try:
            kept = socket.socket(fileno=os.dup(sock.fileno()))
        except OSError as error:  # it was the last descriptor: the client starts its VM itself
            log.warning("no client can be served now: %s", error.strerror)
            return
        client = Channel(kept, protocol.CLIENT_CODEC)
        monitor = next((each for each in self.monitors if each.is_idle), None)
        try:
            if monitor is None or monitor.channel is None:
                client.send(protocol.Declined(f"all {self._size} monitors of the pool are taken"))
            else:
                monitor.channel.send(protocol.Serve(), [sock.fileno()])
                monitor.client = client
        except (ChannelClosed, ProtocolError):
            monitor = None
        if monitor is None:
            client.close()

    def _start_next(self) -> None:
        """Start a monitor if fewer than ``size`` wait or are being started; one at a time."""
        waiting = [each for each in self.monitors if each.channel is not None]
        if len(waiting) >= self._size or any(not each.is_ready for each in waiting):
            return
        delay = self._starts_at - time.monotonic()
        if delay > 0:
            self._loop.call_later(delay, self._start_next)
            return
        try:
            monitor = _start_monitor(self._kernels)
        except OSError as error:
            log.warning("a monitor cannot be started: %s", error.strerror)
            self._back_off()
            return
        self.monitors.append(monitor)
        channel = monitor.channel
        if channel is not None:
            self._loop.add(channel.fileno(), lambda _events: self._on_message(monitor))
        self._loop.add(monitor.pidfd, lambda _events: self._on_end(monitor))

    def _on_message(self, monitor: _Monitor) -> None:
        channel = monitor.channel
        if channel is None:
            return
        try:
            received = channel.receive()
        except (ChannelClosed, ProtocolError):
            self._let_go(monitor)
            return
        if received is None:
            return
        message, fds = received
        for fd in fds:
            os.close(fd)
        if isinstance(message, protocol.Ready):
            monitor.is_ready = True
            self._announce()
            self._start_next()
        else:
            monitor.has_run = True
            self._let_go(monitor)
            self.back_off_seconds = 0.0
            self._start_later(_REPLACE_SECONDS)

    def _let_go(self, monitor: _Monitor) -> None:
        """Forget the channel of a monitor, which no longer waits."""
        if monitor.channel is not None:
            self._loop.remove(monitor.channel.fileno())
            monitor.channel.close()
            monitor.channel = None

    def _on_end(self, monitor: _Monitor) -> None:
        self._let_go(monitor)
        self._loop.remove(monitor.pidfd)
        self.monitors.remove(monitor)
        _, wait_status = os.waitpid(monitor.pid, 0)
        os.close(monitor.pidfd)
        status = os.waitstatus_to_exitcode(wait_status)
        if monitor.client is not None:
            if status < 0:
                with suppress(ChannelClosed, ProtocolError):
                    monitor.client.send(protocol.Killed(-status))
            monitor.client.close()
        if monitor.client is None:
            how = describe_end(wait_status)
            log.warning("a monitor that waited (pid %d) has ended: %s", monitor.pid, how)
            self._back_off()
        else:
            self._start_later(0.0 if monitor.has_run else _REPLACE_SECONDS)

    def _back_off(self) -> None:
        longer = max(_FIRST_BACK_OFF_SECONDS, 2 * self.back_off_seconds)
        self.back_off_seconds = min(longer, _MAX_BACK_OFF_SECONDS)
        self._start_later(self.back_off_seconds)

    def _start_later(self, seconds: float) -> None:
        self._starts_at = max(self._starts_at, time.monotonic() + seconds)
        self._loop.call_later(seconds, self._start_next)

    def _announce(self) -> None:
        idle = sum(each.is_idle for each in self.monitors)
        if idle >= self._size and not self._announced:
            self._announced = True
            log.info("%d monitors wait at %s", idle, self._bound.path)


def run_pool(path: str, size: int, kernels: Iterable[str] = ()) -> None:
    """Keep ``size`` monitors waiting at the socket ``path`` until a signal ends the pool.

    They know the ``kernels`` (paths) already, as far as that is worth it.

    Raises:
        ConfigError: the socket cannot be there, or a kernel is none.
        HostError: the host refuses it.
    """
    _check_directory(path)
    prepared = [each for each in map(prepare_kernel, kernels) if each is not None]
    bound = bind_socket(path, _USE)
    linux.set_process_name("crosvm-pool")
    loop = EventLoop()
    loop.wake_on_signals()
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, lambda _number, _frame: loop.call_soon_threadsafe(loop.stop))
    pool = Pool(bound, size, loop, prepared)
    try:
        loop.run()
    finally:
        pool.close()


def _check_directory(path: str) -> None:
    """Refuse a directory in which another user could put a socket of the same name."""
    directory = os.path.dirname(os.path.abspath(path))
    try:
        found = os.stat(directory)
    except OSError as error:
        raise HostError("make the socket of the pool in", directory) from error
    if found.st_uid != os.geteuid():
        raise ConfigError(
            f"pool: {directory} belongs to another user: choose a directory of your own, "
            "such as $XDG_RUNTIME_DIR"
        )


def _start_monitor(kernels: Sequence[Kernel]) -> _Monitor:
    """Execute a monitor in a session of its own, without any setting of ours but stderr.

    Raises:
        OSError: the host refuses it.
    """
    ours, theirs = socket_pair()
    kept = {name: os.environ[name] for name in _KEPT_VARIABLES if name in os.environ}
    with theirs, open(os.devnull, "r+b") as null:
        pid = os.posix_spawn(
            sys.executable,
            [sys.executable, "-I", "-m", "crosvm_py.pool.monitor", "3"],
            kept,
            file_actions=[
                (os.POSIX_SPAWN_DUP2, theirs.fileno(), 3),
                (os.POSIX_SPAWN_DUP2, null.fileno(), 0),
                (os.POSIX_SPAWN_DUP2, null.fileno(), 1),
            ],
            setsid=True,
            setsigmask=(),
            setsigdef=_ALL_SIGNALS,
        )
    channel = Channel(ours, protocol.POOL_CODEC)
    with suppress(ChannelClosed):  # it has ended already, and we shall hear of it
        for kernel, unpacked_fd in kernels:
            channel.send(kernel, [] if unpacked_fd < 0 else [unpacked_fd])
    try:
        return _Monitor(pid, channel)
    except OSError:  # nobody would hear of its end
        channel.close()
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        raise


def _has_ended(sock: socket.socket) -> bool:
    """Return whether the other side has closed its end already."""
    poll = select.poll()
    poll.register(sock.fileno(), select.POLLIN)
    return any(events & select.POLLHUP for _, events in poll.poll(0))
