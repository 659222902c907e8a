# SPDX-License-Identifier: BSD-3-Clause
"""Where a guest's serial input comes from: the terminal, a pipe, a file.

We read only as much as the UART has room for. So if the guest does not read, the writer on the host
has to wait, and the vmm needs no buffer of its own. A terminal is different: after a second its
keys are read and dropped, because Ctrl-A x must work even if the guest hangs.

Everything here runs in the event loop, except ``_on_room``, which a vCPU calls.
"""

from __future__ import annotations

import errno
import os
import select
import stat

from crosvm_py.console.job import is_callers
from crosvm_py.console.output import Loop
from crosvm_py.console.targets import inherited_fd
from sys_util.errors import raise_host_error
from sys_util.nonblocking import reopen
from sys_util.typing import TYPE_CHECKING, Final, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractContextManager

    from crosvm_py.console.terminal import EscapeKey, Terminal

# After so long without room in the UART, keys of a terminal are dropped.
PATIENCE_SECONDS: Final = 1.0
DROP_BYTES: Final = 4096
# How often a VM in the background checks whether it is in the foreground again.
FOREGROUND_SECONDS: Final = 0.5

# A Ctrl-A that was read before may add one byte to what is read now.
_ESCAPE_BYTES: Final = 1


class TimerLoop(Loop, Protocol):
    """The event loop, with timers."""

    def call_later(self, seconds: float, callback: Callable[[], None]) -> object:
        """Call ``callback`` once, ``seconds`` from now."""
        ...


class Receiver(Protocol):
    """The receiving side of a ``devices.serial.Uart``."""

    on_room: Callable[[], None]

    @property
    def room(self) -> int:
        """How many bytes ``receive`` takes now."""
        ...

    def receive(self, data: bytes) -> int:
        """Take ``data``."""
        ...

    def send_break(self) -> None:
        """Signal a break."""
        ...


class ConsoleInput:
    """Passes bytes from one descriptor to one UART. Owns the descriptor."""

    def __init__(self, fd: int, *, regular: bool = False) -> None:
        """``regular``: it is a file; those are always readable, and epoll(7) refuses them."""
        self.fd = fd
        self._regular = regular
        self._watched = False
        self._ended = False
        self._loop: TimerLoop | None = None

    def start(
        self, receiver: Receiver, loop: TimerLoop, lock: AbstractContextManager[bool]
    ) -> None:
        """Read from now on, with ``lock`` held around every use of ``receiver``."""
        self._receiver, self._loop, self._lock = receiver, loop, lock
        receiver.on_room = self._on_room
        self._resume()

    def close(self) -> None:
        """Close the descriptor; the loop has stopped for good. May be called again."""
        self._ended = True
        fd, self.fd = self.fd, -1
        if fd >= 0:
            os.close(fd)

    def release(self) -> tuple[int, bool]:
        """Hand the descriptor over to the caller, and return whether epoll(7) refuses it."""
        fd, self.fd = self.fd, -1
        self._ended = True
        return fd, self._regular or not _is_pollable(fd)

    def _on_room(self) -> None:
        if not self._watched and not self._ended and self._loop is not None:
            self._loop.call_soon_threadsafe(self._resume)

    def _resume(self) -> None:
        if self._watched or self._ended or self._loop is None:
            return
        if not self._regular:
            try:
                self._loop.add(self.fd, self._on_readable)
            except PermissionError:  # epoll(7) refuses /dev/null, too
                self._regular = True
            else:
                self._watched = True
                return
        while self._read():
            pass

    def _pause(self) -> None:
        if self._watched and self._loop is not None:
            self._watched = False
            self._loop.remove(self.fd)

    def _end(self) -> None:
        self._pause()
        self._ended = True

    def _on_readable(self, _events: int) -> None:
        self._read()

    def _read(self) -> bool:
        """Read once and return whether to read again at once."""
        with self._lock:
            room = self._receiver.room
            if room <= _ESCAPE_BYTES:
                self._no_room()
                return False
            data = self._take(room - _ESCAPE_BYTES)
            if data:
                self._deliver(data)
        return bool(data)

    def _take(self, length: int) -> bytes:
        """Read up to ``length`` bytes without blocking; return b"" if there are none."""
        try:
            data = os.read(self.fd, length)
        except BlockingIOError:
            return b""
        except OSError as error:
            self._read_failed(error)
            return b""
        if not data:
            self._end()
        return data

    def _no_room(self) -> None:
        self._pause()

    def _deliver(self, data: bytes) -> None:
        self._receiver.receive(data)

    def _read_failed(self, _error: OSError) -> None:
        self._end()


class TerminalInput(ConsoleInput):
    """Passes the user's keys to a UART. Owns the descriptor, but not the terminal's modes."""

    def __init__(self, fd: int, terminal: Terminal, keys: EscapeKey) -> None:
        """``fd`` is an open descriptor of ``terminal``; it is owned here from now on."""
        super().__init__(fd)
        self.on_leave: Callable[[], None] | None = None
        self.on_help: Callable[[], None] | None = None
        self.terminal = terminal
        self._keys = keys
        self._dropping = False
        self._pauses = 0
        self._waiting = False  # a timer checks whether we are in the foreground again

    def _resume(self) -> None:
        if self.terminal.in_foreground():
            self.terminal.enter()
            super()._resume()
        else:
            self._wait_for_foreground()

    def _wait_for_foreground(self) -> None:
        self._pause()
        if not self._ended and not self._waiting and self._loop is not None:
            self._waiting = True
            self._loop.call_later(FOREGROUND_SECONDS, self._look_again)

    def _look_again(self) -> None:
        self._waiting = False
        self._resume()

    def _read(self) -> bool:
        if is_callers() and not self.terminal.in_foreground():
            self._wait_for_foreground()  # nobody but us keeps us from reading what the shell gets
            return False
        if self._dropping:
            with self._lock:
                self._dropping = self._receiver.room <= _ESCAPE_BYTES
                if self._dropping:
                    data = self._take(DROP_BYTES)
                    if data:
                        self._deliver(data)
                    return bool(data)
        return super()._read()

    def _no_room(self) -> None:
        self._pause()
        self._pauses += 1
        pause = self._pauses
        if self._loop is not None:
            self._loop.call_later(PATIENCE_SECONDS, lambda: self._start_dropping(pause))

    def _start_dropping(self, pause: int) -> None:
        if pause == self._pauses and not self._watched and not self._waiting:
            self._dropping = True
            self._resume()

    def _deliver(self, data: bytes) -> None:
        from crosvm_py.console.terminal import Action

        passed, action = self._keys.feed(data)
        self._receiver.receive(passed)
        if action is Action.BREAK:
            self._receiver.send_break()
        elif action is Action.HELP and self.on_help is not None:
            self.on_help()
        elif action is Action.LEAVE and self.on_leave is not None:
            self._end()
            self.on_leave()

    def _read_failed(self, _error: OSError) -> None:
        # EIO: the terminal hung up, or we are in the background and SIGTTIN is ignored.
        if self.terminal.in_foreground():
            self._end()
        else:
            self._wait_for_foreground()


def open_input(path: str) -> ConsoleInput:
    """Open ``input=``: a file, a device, or a FIFO, which need not have a writer yet.

    Raises:
        HostError: it cannot be opened.
    """
    fd = inherited_fd(path)
    try:
        if fd is not None:
            return input_from(fd)
        flags = os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
        mode = os.stat(path).st_mode
        if stat.S_ISDIR(mode):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        # We open a FIFO for writing, too; otherwise it would end with its first writer.
        own = os.open(path, flags | (os.O_RDWR if stat.S_ISFIFO(mode) else os.O_RDONLY))
        return ConsoleInput(own, regular=stat.S_ISREG(mode))
    except OSError as error:
        raise_host_error("open", f"--serial input={path}", error)


def input_from(fd: int) -> ConsoleInput:
    """Return the input from an open descriptor; the caller keeps that, since it is duplicated.

    Raises:
        OSError: it is closed.
    """
    mode = os.fstat(fd).st_mode
    own = reopen(fd, os.O_RDONLY) if stat.S_ISFIFO(mode) else None
    return ConsoleInput(os.dup(fd) if own is None else own, regular=stat.S_ISREG(mode))


def _is_pollable(fd: int) -> bool:
    with select.epoll() as epoll:
        try:
            epoll.register(fd)
        except PermissionError:
            return False
    return True
