# SPDX-License-Identifier: BSD-3-Clause
"""A warm monitor: a process that has all modules imported, waits for one client, runs its VM, ends.

The pool executes ``python -I -m crosvm_py.pool.monitor FD`` for each, so that each has addresses
and a stack canary of its own. FD is a channel to the pool. While it waits, the monitor knows
nothing of any client or guest, and ends when the pool does.
"""

from __future__ import annotations

import fcntl
import gc
import os
import select
import sys
from contextlib import suppress

from crosvm_py.__main__ import run_command_line
from crosvm_py.console.job import CallersJob, set_job
from crosvm_py.inherited import keep_open
from crosvm_py.pool import protocol
from crosvm_py.pool.caller import DeclinedError, check_same, own_status, take_over
from crosvm_py.pool.descriptors import install
from crosvm_py.pool.head_start import HeadStart
from crosvm_py.socket_path import peer_credentials
from crosvm_py.version import VERSION
from crosvm_py.vmm.prepared_kernel import PreparedKernel, keep_prepared
from sys_util import linux, signal, socket
from sys_util.channel import Channel
from sys_util.errors import ChannelClosed, ProtocolError, VmmError
from sys_util.typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from typing import NoReturn

# A run could open this path, and would get the terminal of the pool or none.
_NEEDS_TERMINAL: Final = b"/dev/tty"
# A client sends its order at once. Until it has, the pool starts no other monitor for this one.
ORDER_SECONDS: Final = 1.0


def main() -> int:
    """Wait for a client and run its VM; return 0 if there was none, or end with its status."""
    gc.disable()
    pool = Channel(socket.socket(fileno=int(sys.argv[1])), protocol.MONITOR_CODEC)
    status = own_status()
    head_start = HeadStart()
    linux.set_process_name("crosvm-monitor")
    try:
        pool.send(protocol.Ready())
        client = _wait_for_client(pool)
        linux.set_process_name("crosvm")
    except ChannelClosed:
        return 0  # the pool has ended
    serve(client, pool, status, head_start)
    return 0


def serve(
    client: socket.socket, pool: Channel, status: Mapping[str, str], head_start: HeadStart
) -> None:
    """Run the VM that the client asks for, and end this process; return if none can be run.

    ``status`` is what ``own_status`` returned.
    """
    try:
        order, fds = _receive_order(client)
        job = _become_callers(client, order, status)
        head_start.settle()
        with suppress(ChannelClosed, ProtocolError):
            pool.send(protocol.Taken())
        pool.close()
        client = _install(client, job, order, fds, head_start)
    except (VmmError, OSError) as error:
        _decline(client, error)
    except ChannelClosed:
        return  # the client has ended
    else:
        _run(client, job, order, head_start)


def _wait_for_client(pool: Channel) -> socket.socket:
    """Return the connection to the client that the pool hands over.

    Raises:
        ChannelClosed: the pool has ended.
    """
    poll = select.poll()
    poll.register(pool.fileno(), select.POLLIN)
    while True:
        poll.poll()
        received = pool.receive()
        if received is None:
            continue
        message, fds = received
        if isinstance(message, PreparedKernel):
            keep_prepared(message, *fds or (-1,))
        elif len(fds) == 1:
            return socket.socket(fileno=fds[0])


def _receive_order(client: socket.socket) -> tuple[protocol.Run, list[int]]:
    """Return what the client asks for, and its descriptors.

    Raises:
        DeclinedError: it asks for nothing in time, or is another version.
        ProtocolError: what it asks for makes no sense.
        ChannelClosed: it has ended.
    """
    poll = select.poll()
    poll.register(client.fileno(), select.POLLIN)
    poll.poll(ORDER_SECONDS * 1000)
    received = Channel(client, protocol.ORDER_CODEC).receive()
    if received is None:
        raise DeclinedError("the client asked for nothing in time")
    order, fds = received
    if not isinstance(order, protocol.Run):
        raise ProtocolError(f"an unexpected {type(order).__name__}")
    if order.version != VERSION:
        raise DeclinedError(f"the pool is version {VERSION}, this is {order.version}")
    if any(b"\0" in each for each in (*order.words, *order.environment)):
        raise ProtocolError("a zero byte, which no argument of a program has")
    return order, fds


def _become_callers(
    client: socket.socket, order: protocol.Run, status: Mapping[str, str]
) -> CallersJob:
    """Become what a child of the client would be; return how to look at its place in its session.

    Raises:
        DeclinedError: that is not possible.
        OSError: the client has ended.
    """
    pid = peer_credentials(client)[0]
    if any(_NEEDS_TERMINAL in word.replace(b",", b"=").split(b"=") for word in order.words):
        raise DeclinedError(f"{os.fsdecode(_NEEDS_TERMINAL)} is the terminal of a process itself")
    check_same(pid, status)
    take_over(pid, order.environment)
    return CallersJob.of(pid)


def _install(
    client: socket.socket,
    job: CallersJob,
    order: protocol.Run,
    fds: Sequence[int],
    head_start: HeadStart,
) -> socket.socket:
    """Take the client's descriptors, and tell it that its VM starts; return its connection.

    From then on the kernel kills this process when the client ends in whatever way: the connection
    hangs up, and that sends SIGKILL (fcntl(2), F_SETSIG).

    Raises:
        DeclinedError: we cannot have these descriptors.
        ChannelClosed: the client has ended.
    """
    moved = install(order.fds, fds, {client.fileno(), job.fd, *head_start.fds()})
    head_start.move(moved)
    job.fd = moved[job.fd]
    client = socket.socket(fileno=moved[client.detach()])
    pidfd = os.pidfd_open(os.getpid())
    Channel(client, protocol.ORDER_CODEC).send(protocol.Started(), [pidfd])
    os.close(pidfd)
    fcntl.fcntl(client, fcntl.F_SETOWN, os.getpid())
    fcntl.fcntl(client, fcntl.F_SETSIG, signal.SIGKILL)
    fcntl.fcntl(client, fcntl.F_SETFL, os.O_NONBLOCK | os.O_ASYNC)
    poll = select.poll()
    poll.register(client.fileno(), 0)
    if poll.poll(0):
        raise ChannelClosed  # it ended before the kernel knew what to do about that
    return client


def _run(
    client: socket.socket, job: CallersJob, order: protocol.Run, head_start: HeadStart
) -> NoReturn:
    """Run the command line of the client to its end, tell the client its status, and exit."""
    keep_open({client.fileno(), job.fd, *head_start.fds()})
    set_job(job)
    sys.argv[1:] = map(os.fsdecode, order.words)
    status = run_command_line()
    with suppress(ChannelClosed, ProtocolError):
        Channel(client, protocol.ORDER_CODEC).send(protocol.Ended(status & 0xFF))
    os._exit(status)


def _decline(client: socket.socket, error: Exception) -> None:
    reason = getattr(error, "strerror", None) or str(error)
    declined = protocol.Declined(reason[: protocol.MAX_REASON_CHARS])
    with suppress(ChannelClosed, ProtocolError):
        Channel(client, protocol.ORDER_CODEC).send(declined)


if __name__ == "__main__":
    sys.exit(main())
