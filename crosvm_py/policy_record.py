# SPDX-License-Identifier: BSD-3-Clause
"""The recorder: it decides on every system call of the processes whose policies are recorded.

The recorder is the process that the user started; the VM is its child. Each recorded process sends
it the listener of its filter (seccomp_unotify(2)); a restarted device sends a new one. The recorder
ends when the VM has ended, and if the recorder ends first, the VM ends, too.
"""

from __future__ import annotations

import array
import os

from crosvm_py.end_signals import handle_end_signals, reset_inherited_signals
from seccomp.record import Recording
from sys_util import linux, signal, socket
from sys_util.channel import socket_pair
from sys_util.event_loop import EPOLLIN, EventLoop
from sys_util.log import get_logger
from sys_util.seccomp_notify import Listener
from sys_util.typing import TYPE_CHECKING, Final, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Mapping

log = get_logger("crosvm.policy")

_MAX_NAME_BYTES: Final = 128
# A shell shows this plus the number of the signal for a process that a signal ended.
_SIGNALLED: Final = 128


class Fork(NamedTuple):
    """The result of ``fork_vm``: in the VM ``pid`` is 0 and ``fd`` the socket to the recorder."""

    pid: int
    fd: int


def fork_vm() -> Fork:
    """Fork the process that will be the vmm; the caller becomes its recorder."""
    reset_inherited_signals()
    ours, theirs = socket_pair()
    parent = os.getpid()
    pid = os.fork()
    if pid:
        theirs.close()
        return Fork(pid, ours.detach())
    ours.close()
    linux.prctl(linux.PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != parent:
        os.kill(os.getpid(), signal.SIGTERM)
    return Fork(0, theirs.detach())


class Recorder:
    """Serve the listeners of one VM until it has ended."""

    def __init__(self, fork: Fork, recordings: Mapping[str, Recording]) -> None:
        self._socket = socket.socket(fileno=fork.fd)
        self._socket.setblocking(False)
        self._recordings = recordings
        self._pidfd = os.pidfd_open(fork.pid)
        self._pid = fork.pid
        self._loop = EventLoop()
        self._listeners: set[Listener] = set()
        self._status: int | None = None
        self._is_connected = True

    def run(self) -> int:
        """Serve until the VM and all recorded processes have ended; return the VM's exit status."""
        loop = self._loop
        loop.wake_on_signals()
        handle_end_signals(self._pass_on)
        loop.add(self._socket.fileno(), self._on_message)
        loop.add(self._pidfd, self._on_end)
        while self._status is None or self._is_connected or self._listeners:
            loop.run_once()
        self._socket.close()
        os.close(self._pidfd)
        loop.close()
        return self._status

    def _pass_on(self, signum: int, _frame: object) -> None:
        if self._status is None:
            linux.pidfd_send_signal(self._pidfd, signum)

    def _on_end(self, _events: int) -> None:
        _, wait_status = os.waitpid(self._pid, 0)
        self._loop.remove(self._pidfd)
        status = os.waitstatus_to_exitcode(wait_status)
        self._status = _SIGNALLED - status if status < 0 else status

    def _on_message(self, _events: int) -> None:
        fds = array.array("i")
        room = socket.CMSG_SPACE(fds.itemsize)
        flags = socket.MSG_CMSG_CLOEXEC
        name, ancillary, _flags, _ = self._socket.recvmsg(_MAX_NAME_BYTES, room, flags)
        for _level, _kind, data in ancillary:
            fds.frombytes(data)
        if not name and not fds:
            self._loop.remove(self._socket.fileno())
            self._is_connected = False
            return
        recording = self._recordings.get(name.decode("ascii", "replace"))
        for fd in fds:
            if recording is None:
                os.close(fd)
            else:
                self._listen(Listener(fd), recording)

    def _listen(self, listener: Listener, recording: Recording) -> None:
        recording.processes += 1
        self._listeners.add(listener)

        def serve(events: int) -> None:
            if events & EPOLLIN:
                answer(listener, recording)
            else:  # every process under the filter has ended
                self._loop.remove(listener.fileno())
                self._listeners.discard(listener)
                listener.close()

        self._loop.add(listener.fileno(), serve)


def answer(listener: Listener, recording: Recording) -> None:
    """Record one system call and let it go on, or refuse it."""
    call = listener.receive()
    if call is None:
        return
    refusal = recording.refusal(call.number, call.args)
    if refusal:
        listener.refuse(call.id, refusal)
        return
    recording.add(call.number, call.args)
    listener.let_go_on(call.id)
