# SPDX-License-Identifier: BSD-3-Clause
"""``crosvm run --pool PATH``: hand the run over to a monitor of the pool, and stand in for it.

The monitor gets all that we have inherited. Here remains what only the user's own process can do:
it gets the signals of the terminal and passes them on, stops and goes on with its job, and ends as
the monitor does. Where the program was built with Rust, ``launcher/`` does all this instead, in a
tenth of the time that Python needs to start.
"""

from __future__ import annotations

import fcntl
import os
import resource
import select
import sys
import time
from contextlib import suppress

from crosvm_py.inherited import KEPT
from crosvm_py.pool import protocol
from crosvm_py.socket_path import peer_credentials
from crosvm_py.version import VERSION
from sys_util import signal, socket
from sys_util.channel import Channel
from sys_util.errors import ChannelClosed, ProtocolError
from sys_util.log import printable
from sys_util.typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sys_util.wire import Message

OPTION: Final = "--pool"
# Set by the launcher (-X) when it has tried the pool already.
TRIED: Final = "crosvm_pool_tried"

# The most time until a monitor has taken over; then we start as usual. A monitor needs 2 ms.
START_SECONDS: Final = 5.0
_OF_A_SIGNAL: Final = 128  # a shell adds this to the number of the signal that killed a process
_KEPT: Final = frozenset(map(os.fsencode, KEPT))
_STOPPING: Final = frozenset({signal.SIGTSTP, signal.SIGTTIN, signal.SIGTTOU})
_NOT_PASSED_ON: Final = frozenset({signal.SIGKILL, signal.SIGSTOP, signal.SIGCHLD})


class _NoPoolError(Exception):
    """The pool cannot be used, for this reason."""


def pool_path(words: Sequence[str]) -> str | None:
    """Return the value of ``--pool`` in a command line of ``run``, without parsing all of it."""
    if "run" not in words or TRIED in sys._xoptions:
        return None
    behind = list(words[words.index("run") + 1 :])
    for at, word in enumerate(behind):
        name, equals, value = word.partition("=")
        if name == OPTION:
            return value if equals else "".join(behind[at + 1 : at + 2])
    return None


def run_in_pool(words: Sequence[str]) -> int | None:
    """Have a monitor of the pool that ``words`` name run this command line; return its exit status.

    Return ``None`` if they name none, or if there is no monitor for us: then the user was told why.
    """
    from crosvm_py.cli.output import write_error

    path = pool_path(words)
    if path is None:
        return None
    try:
        channel = _connect(path)
        pidfd = _hand_over(channel, words)
    except _NoPoolError as error:
        write_error(f"{OPTION} {path}: {error}; starting as usual")
        return None
    for number in signal.valid_signals() - _NOT_PASSED_ON:
        if signal.getsignal(number) is not signal.SIG_IGN:
            _pass_on(number, pidfd)
    return _stand_in(channel)


def _connect(path: str) -> Channel:
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    sock.setblocking(False)
    try:
        sock.connect(path)
        uid = peer_credentials(sock)[1]
    except OSError as error:
        sock.close()
        raise _NoPoolError(f"no pool to connect to: {error.strerror or error}") from error
    if uid != os.geteuid():
        sock.close()
        raise _NoPoolError("the pool belongs to another user")
    return Channel(sock, protocol.CLIENT_CODEC)


def _hand_over(channel: Channel, words: Sequence[str]) -> int:
    """Send the order and all that is open here; return a pidfd of the monitor that takes it."""
    fds = [fd for fd in map(int, os.listdir("/proc/self/fd")) if _is_inherited(fd, channel)]
    kept = [name + b"=" + value for name, value in os.environb.items() if name in _KEPT]
    order = protocol.Run(VERSION, tuple(map(os.fsencode, words)), tuple(kept), tuple(fds))
    if len(fds) > protocol.MAX_FDS:
        raise _NoPoolError(f"{len(fds)} descriptors are open, {protocol.MAX_FDS} can be passed")
    try:
        with suppress(ChannelClosed):  # a pool that declines may have closed its end by now
            channel.send(order, fds)
        answer, received = _next(channel, START_SECONDS)
    except (ChannelClosed, ProtocolError) as error:
        raise _NoPoolError(str(error) or "the monitor has ended") from error
    if isinstance(answer, protocol.Declined):
        raise _NoPoolError(printable(answer.reason))
    if not isinstance(answer, protocol.Started) or len(received) != 1:
        raise _NoPoolError("its answer makes no sense")
    return received[0]


def _is_inherited(fd: int, channel: Channel) -> bool:
    try:
        return fd != channel.fileno() and not fcntl.fcntl(fd, fcntl.F_GETFD) & fcntl.FD_CLOEXEC
    except OSError:  # the descriptor that listdir used for the directory
        return False


def _next(channel: Channel, seconds: float | None = None) -> tuple[Message, list[int]]:
    """Return the next message of the monitor.

    Raises:
        ProtocolError: it makes no sense, or does not come in time.
        ChannelClosed: none will come.
    """
    poll = select.poll()
    poll.register(channel.fileno(), select.POLLIN)
    deadline = None if seconds is None else time.monotonic() + seconds
    while True:
        left = None if deadline is None else max(0.0, (deadline - time.monotonic()) * 1000)
        if not poll.poll(left):
            raise ProtocolError("no monitor answers in time")
        received = channel.receive()
        if received is not None:
            return received


def _stand_in(channel: Channel) -> int:
    """Wait for the end of the monitor; return its status, or end by the signal that killed it."""
    from crosvm_py.cli.output import write_error

    try:
        answer, _ = _next(channel)
    except (ChannelClosed, ProtocolError):
        write_error(f"{OPTION}: the monitor and its pool have ended, and nobody told its status")
        return _OF_A_SIGNAL + signal.SIGKILL
    if isinstance(answer, protocol.Ended):
        return answer.status
    number = answer.signal if isinstance(answer, protocol.Killed) else signal.SIGKILL
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # the monitor has dumped its core, if wanted
    if number not in _NOT_PASSED_ON:
        signal.signal(number, signal.SIG_DFL)
    os.kill(os.getpid(), number)
    return _OF_A_SIGNAL + number


def _pass_on(number: int, pidfd: int) -> None:
    """Pass this signal on to the monitor from now on, and stop together with it."""

    def send(signum: int) -> None:
        with suppress(OSError):  # it has ended, and we shall hear of it
            signal.pidfd_send_signal(pidfd, signum)

    def handle(signum: int, _frame: object) -> None:
        if signum not in _STOPPING:
            send(signum)
            return
        send(signal.SIGSTOP)
        signal.signal(signum, signal.SIG_DFL)
        os.kill(os.getpid(), signum)  # returns when our job goes on, or if it cannot be stopped
        signal.signal(signum, handle)
        send(signal.SIGCONT)

    with suppress(OSError, ValueError):  # one that the C library keeps for itself
        signal.signal(number, handle)
