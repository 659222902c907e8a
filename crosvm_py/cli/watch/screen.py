# SPDX-License-Identifier: BSD-3-Clause
"""Where a live table is shown: a terminal, which is given back as it was, or anything else.

In a terminal the table has a screen of its own (the alternate screen of xterm), so that nothing of
it stays. Elsewhere one table is written behind the other.
"""

from __future__ import annotations

import os
import select
import time

from crosvm_py.end_signals import END_SIGNALS
from sys_util import signal
from sys_util.typing import TYPE_CHECKING, Final, Self

if TYPE_CHECKING:
    from collections.abc import Sequence
    from types import FrameType

_ENTER: Final = "\x1b[?1049h\x1b[?25l"  # the alternate screen, without a cursor
_LEAVE: Final = "\x1b[?25h\x1b[?1049l"
_TOP: Final = "\x1b[H"
_REST_OF_LINE: Final = "\x1b[K"
_REST_OF_SCREEN: Final = "\x1b[J"
_END_KEYS: Final = (
    b"qQ\x03\x04"  # also Ctrl-C and Ctrl-D where the terminal makes no signal of them
)
_SIZE: Final = (24, 80)


class Screen:
    """Shows lines until the user wants to end. Use it as a context manager."""

    def __init__(self, stdin: int = 0, stdout: int = 1, *, raw: bool = False) -> None:
        """The descriptors stay the caller's. With ``raw`` a terminal is written as a file is."""
        self._stdin = stdin
        self._stdout = stdout
        self.is_terminal = not raw and os.isatty(stdout)
        self._has_keys = self.is_terminal and os.isatty(stdin)
        self._modes: list[int | list[bytes | int]] = []
        self._before: dict[int, object] = {}
        self._wake, self._woken = -1, -1
        self._ended = False
        self._lines: Sequence[str] = ()

    def __enter__(self) -> Self:
        self._wake, self._woken = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        signal.set_wakeup_fd(self._woken, warn_on_full_buffer=False)
        for signum in END_SIGNALS:
            if signal.getsignal(signum) != signal.SIG_IGN:
                self._before[signum] = signal.signal(signum, self._end)
        self._before[signal.SIGWINCH] = signal.signal(signal.SIGWINCH, lambda *_: None)
        if self._has_keys:
            self._take_keys()
        if self.is_terminal:
            self._write(_ENTER)
        return self

    def __exit__(self, *_exception: object) -> None:
        if self.is_terminal:
            self._write(_LEAVE)
        if self._modes:
            import termios

            termios.tcsetattr(self._stdin, termios.TCSADRAIN, self._modes)
        signal.set_wakeup_fd(-1)
        for signum, handler in self._before.items():
            signal.signal(signum, handler)  # type: ignore[arg-type]  # as it was returned to us
        os.close(self._wake)
        os.close(self._woken)

    def _end(self, _signum: int, _frame: FrameType | None) -> None:
        self._ended = True

    def _take_keys(self) -> None:
        """Get every key at once, also Ctrl-Z, which would give the terminal away as it is."""
        import termios

        self._modes = termios.tcgetattr(self._stdin)
        modes = termios.tcgetattr(self._stdin)
        modes[3] &= ~(termios.ICANON | termios.ECHO)
        modes[6][termios.VSUSP] = b"\0"
        termios.tcsetattr(self._stdin, termios.TCSADRAIN, modes)

    def show(self, lines: Sequence[str]) -> None:
        """Show lines in place of those before, cut to the size of the terminal."""
        self._lines = lines
        if not self.is_terminal:
            self._write("".join(f"{line}\n" for line in lines))
            return
        rows, columns = self._size()
        shown = [f"{line[:columns]}{_REST_OF_LINE}" for line in lines[:rows]]
        self._write(_TOP + "\r\n".join(shown) + _REST_OF_SCREEN)

    def _size(self) -> tuple[int, int]:
        import termios

        try:
            rows, columns = termios.tcgetwinsize(self._stdout)
        except termios.error:
            return _SIZE
        return (rows or _SIZE[0], columns or _SIZE[1])

    def wait(self, seconds: float) -> bool:
        """Wait, or until the user wants to end; return whether to go on."""
        poll = select.poll()
        poll.register(self._wake, select.POLLIN)
        if self._has_keys:
            poll.register(self._stdin, select.POLLIN)
        deadline = time.monotonic() + seconds
        while not self._ended and (left := deadline - time.monotonic()) > 0:
            for fd, _ in poll.poll(left * 1000):
                self._heard(fd, _read(fd))
        return not self._ended

    def _heard(self, fd: int, data: bytes) -> None:
        if fd == self._stdin:  # a terminal that has gone reads as ended
            self._ended |= not data or any(key in _END_KEYS for key in data)
        elif self.is_terminal:  # a signal, which may be about its size
            self.show(self._lines)

    def _write(self, text: str) -> None:
        data = text.encode("utf-8", "backslashreplace")
        try:
            while data:
                data = data[os.write(self._stdout, data) :]
        except OSError:  # nobody reads it any more
            self._ended = True


def _read(fd: int) -> bytes:
    try:
        return os.read(fd, 256)
    except OSError:
        return b""
