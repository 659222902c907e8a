# SPDX-License-Identifier: BSD-3-Clause
"""The keeper of the control process: it starts one, and another when that one has ended.

The vmm can start no process once its guest runs, and no child of the warden may have the system
calls that a control process needs. So the keeper does it, which is forked before the guest runs. It
reads nothing from anyone: it sends each new channel to the vmm, and waits for the end of the
control process and of the vmm. Each control process is a fresh interpreter, so that a client that
crashes one learns nothing about the addresses of the next.
"""

from __future__ import annotations

import os
import select
import time
from contextlib import suppress

from crosvm_py.control.protocol import Serving
from crosvm_py.exit_status import EXIT_HOST, describe_end
from crosvm_py.interpreter import interpreter_words, module_path
from jail.steps import DieWithParent
from sys_util import linux, signal
from sys_util.channel import socket_pair
from sys_util.errors import ChannelClosed, ProtocolError
from sys_util.log import get_logger
from sys_util.typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from crosvm_py.control.protocol import ControlFds
    from sys_util.channel import Channel

log = get_logger("crosvm.control")

# The most time for a control process to end by itself, once the vmm has ended.
END_SECONDS: Final = 2.0
# How long the vmm may take to end after it has closed the channel of the control process.
CLOSED_SECONDS: Final = 1.0
# A process that lived for less is made again after a pause, which doubles each time.
SHORT_LIFE_SECONDS: Final = 10.0
FIRST_PAUSE_SECONDS: Final = 0.1
LONGEST_PAUSE_SECONDS: Final = 30.0

BOOT: Final = f"""
import gc, os, sys
gc.disable()
try:
    sys.path[:] = sys.argv[3:]
    from crosvm_py.control.process import be_control
except BaseException as error:
    print(f"crosvm: control process: {{type(error).__name__}}: {{error}}", file=sys.stderr)
    os._exit({EXIT_HOST})
be_control(sys.argv[1], int(sys.argv[2]))
"""


class Keeper:
    """Starts control processes, one after the other. Owns none of the descriptors it is given.

    ``fds`` are those of every control process, without a channel.
    """

    def __init__(self, vmm: Channel, fds: ControlFds) -> None:
        self._vmm = vmm
        self._fds = fds
        self._vmm_pid = os.getppid()
        self._words = interpreter_words(BOOT)
        self._path = module_path()

    def keep(self) -> None:
        """Start a control process whenever there is none, until the vmm has ended."""
        pause = FIRST_PAUSE_SECONDS
        while True:
            begun = time.monotonic()
            try:
                ended = self._one()
            except ChannelClosed:
                return
            except OSError as error:
                ended = f"cannot be started: {error.strerror}"
            if not ended:
                return
            pause = (
                FIRST_PAUSE_SECONDS if _is_long(begun) else min(pause * 2, LONGEST_PAUSE_SECONDS)
            )
            log.error("control process: %s; the next one starts in %.1f s", ended, pause)
            if self._vmm_ends(pause):
                return

    def _one(self) -> str:
        """Run one control process; return how it ended, or "" because the vmm has ended.

        Raises:
            ChannelClosed: the vmm has ended.
            OSError: the host makes no process, or nothing to watch it by.
        """
        ours, theirs = socket_pair()
        with ours, theirs:
            pid = self._execute(theirs.fileno())
            pidfd = linux.watch_child(pid)
            try:
                self._vmm.send(Serving(pid), [ours.fileno()])
            except ProtocolError as error:
                linux.pidfd_send_signal(pidfd, signal.SIGKILL)
                _reap(pid, pidfd)
                return f"cannot be told to the vmm: {error}"
        return self._watch(pid, pidfd)

    def _watch(self, pid: int, pidfd: int) -> str:
        """Wait until the process or the vmm has ended; return how the process did, or ""."""
        poll = select.poll()
        poll.register(pidfd, select.POLLIN)
        poll.register(self._vmm.fileno(), 0)  # POLLHUP alone
        ready = [fd for fd, _events in poll.poll()]
        if pidfd in ready:
            wait_status = _reap(pid, pidfd)
            # With status 0 it has ended because the vmm closed its channel, perhaps to end next.
            seconds = 0 if wait_status else CLOSED_SECONDS
            return "" if self._vmm_ends(seconds) else describe_end(wait_status)
        poll.unregister(self._vmm.fileno())
        if not poll.poll(END_SECONDS * 1000):
            linux.pidfd_send_signal(pidfd, signal.SIGKILL)
        _reap(pid, pidfd)
        return ""

    def _vmm_ends(self, seconds: float) -> bool:
        poll = select.poll()
        poll.register(self._vmm.fileno(), 0)
        return bool(poll.poll(seconds * 1000))

    def _execute(self, channel: int) -> int:
        """Fork, and execute the interpreter in the child, in a process group of its own.

        Return its pid, which is the number of the group, too.
        """
        pid = os.fork()
        if pid:
            with suppress(OSError):  # it has executed, or ended, and so made the group itself
                os.setpgid(pid, pid)
            return pid
        try:
            DieWithParent().apply()
            os.setpgid(0, 0)
            fds = self._fds._replace(channel=channel)
            for fd in fds.used():
                os.set_inheritable(fd, True)
            arguments = (fds.as_word(), str(self._vmm_pid), *self._path)
            os.execve(self._words[0], [*self._words, *arguments], {})
        except OSError as error:
            log.error("execute %s: %s", self._words[0], error.strerror)
        finally:
            os._exit(EXIT_HOST)


def _is_long(begun: float) -> bool:
    return time.monotonic() - begun >= SHORT_LIFE_SECONDS


def _reap(pid: int, pidfd: int) -> int:
    """Wait for the end of a control process and return its wait status; closes the pidfd.

    Its opener, which it made as another child of ours, is ended, and all that the opener has made,
    in one system call, which no fork(2) can escape. None of them may leave the group.
    """
    os.close(pidfd)
    os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)  # until it is reaped, the group is its own
    os.killpg(pid, signal.SIGKILL)
    wait_status = os.waitpid(pid, 0)[1]
    with suppress(ChildProcessError):
        while True:
            os.waitpid(-1, 0)
    return wait_status
