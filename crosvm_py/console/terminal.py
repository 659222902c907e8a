# SPDX-License-Identifier: BSD-3-Clause
"""The user's terminal as the guest's console: raw mode, its end, and the keys after Ctrl-A.

While the guest has the terminal, it gets every key, even Ctrl-C and Ctrl-Z. Only Ctrl-A is ours, as
in QEMU: Ctrl-A x leaves the guest, Ctrl-A h shows the keys.

The modes found at the start are plain data (``TerminalState``), so that the warden can restore them
if the vmm is killed: ``restore`` works in any process that has the terminal open.
"""

from __future__ import annotations

import os

from crosvm_py.console.job import in_foreground
from sys_util import signal
from sys_util.enum import Enum
from sys_util.typing import TYPE_CHECKING, Final, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable

ESCAPE: Final = 0x01  # Ctrl-A

HELP: Final = (
    b"\r\n"
    b"Ctrl-A x  leave: stop the guest at once\r\n"
    b"Ctrl-A b  send a break (Linux: the SysRq key)\r\n"
    b"Ctrl-A a  send Ctrl-A (also Ctrl-A Ctrl-A)\r\n"
    b"Ctrl-A h  show this help\r\n"
)


class Action(Enum):
    """The actions of keys after Ctrl-A."""

    LEAVE = "x"
    BREAK = "b"
    HELP = "h"


_ACTIONS: Final = {
    ord("x"): Action.LEAVE,
    ord("b"): Action.BREAK,
    ord("h"): Action.HELP,
    ord("?"): Action.HELP,
}


class EscapeKey:
    """Finds Ctrl-A and the key after it in what the user types."""

    def __init__(self) -> None:
        self._escaped = False

    def feed(self, data: bytes) -> tuple[bytes, Action | None]:
        """Return the keys in ``data`` that the guest gets, and the action, if any.

        LEAVE ends the input. If there are several other actions, the last one counts. A key without
        an action is passed to the guest together with the Ctrl-A before it.
        """
        if not self._escaped and ESCAPE not in data:
            return data, None
        passed = bytearray()
        action: Action | None = None
        for key in data:
            if not self._escaped:
                self._escaped = key == ESCAPE
                if not self._escaped:
                    passed.append(key)
                continue
            self._escaped = False
            if key in _ACTIONS:
                action = _ACTIONS[key]
                if action is Action.LEAVE:
                    break
            else:
                passed += b"\x01" if key in (ESCAPE, ord("a")) else bytes((ESCAPE, key))
        return bytes(passed), action


class TerminalState(NamedTuple):
    """The modes of a terminal (termios(3)) as numbers and bytes."""

    input_modes: int
    output_modes: int
    control_modes: int
    local_modes: int
    input_speed: int
    output_speed: int
    control_characters: bytes


def is_terminal(fd: int) -> bool:
    """Return whether ``fd`` is a terminal; False if it is closed."""
    return os.isatty(fd)


def save(fd: int) -> TerminalState:
    """Return the present modes of the terminal.

    Raises:
        OSError: ``fd`` is no terminal, or it hung up.
    """
    import termios

    try:
        iflag, oflag, cflag, lflag, ispeed, ospeed, cc = termios.tcgetattr(fd)
    except termios.error as error:
        raise OSError(*error.args) from None
    # MIN and TIME are numbers, the other control characters one byte each.
    characters = b"".join(c if isinstance(c, bytes) else bytes((c,)) for c in cc)
    return TerminalState(iflag, oflag, cflag, lflag, ispeed, ospeed, characters)


def raw(state: TerminalState) -> TerminalState:
    """Return ``state`` changed so that every key is passed on at once and unchanged.

    Output processing stays on, so that our own messages start at the left margin.
    """
    import termios as t

    characters = bytearray(state.control_characters)
    characters[t.VMIN] = 1
    characters[t.VTIME] = 0
    masked_input = t.IGNBRK | t.BRKINT | t.PARMRK | t.ISTRIP | t.INLCR | t.IGNCR | t.ICRNL | t.IXON
    masked_local = t.ECHO | t.ECHONL | t.ICANON | t.ISIG | t.IEXTEN
    return state._replace(
        input_modes=state.input_modes & ~masked_input,
        control_modes=state.control_modes & ~(t.CSIZE | t.PARENB) | t.CS8,
        local_modes=state.local_modes & ~masked_local,
        control_characters=bytes(characters),
    )


def apply(fd: int, state: TerminalState) -> None:
    """Set the modes of the terminal; in the background SIGTTOU does not stop us for that.

    Raises:
        OSError: ``fd`` is no terminal, or it hung up.
    """
    import termios

    characters = [bytes((c,)) for c in state.control_characters]
    attributes: list[int | list[bytes]] = [*state[:6], characters]
    old_mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTTOU})
    try:
        # TCSANOW: waiting for output would hang on a terminal that is stopped by Ctrl-S.
        termios.tcsetattr(fd, termios.TCSANOW, attributes)
    except termios.error as error:
        raise OSError(*error.args) from None
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, old_mask)


def make_raw(fd: int) -> TerminalState:
    """Switch the terminal to raw mode and return the modes it had.

    Raises:
        OSError: ``fd`` is no terminal, or it hung up.
    """
    state = save(fd)
    apply(fd, raw(state))
    return state


def restore(fd: int, state: TerminalState, *, only_if_raw: bool = False) -> None:
    """Restore the modes; do nothing if the terminal is gone. May be called again.

    With ``only_if_raw`` do nothing if the modes were changed since ``make_raw``: when the vmm is
    killed, the user's shell may notice that before the warden does, and set its own modes.
    """
    try:
        if not only_if_raw or save(fd) == raw(state):
            apply(fd, state)
    except OSError:
        return


class Terminal:
    """The terminal while the guest has it. The caller owns the descriptor."""

    def __init__(self, fd: int) -> None:
        """Read the modes.

        Raises:
            OSError: ``fd`` is no terminal, or it hung up.
        """
        self.fd = fd
        self.state = save(fd)
        self.is_raw = False

    def in_foreground(self) -> bool:
        """Return whether we are in the foreground; see ``job.in_foreground``."""
        return in_foreground(self.fd)

    def enter(self) -> None:
        """Switch to raw mode; also after SIGCONT, when a shell may have changed the modes.

        Do nothing if the terminal hung up: reading it will return end-of-file.
        """
        try:
            apply(self.fd, raw(self.state))
        except OSError:
            return
        self.is_raw = True

    def leave(self) -> None:
        """Restore the modes from before ``enter``. May be called again.

        In the background the terminal may have modes that the shell has set; those stay.
        """
        if self.is_raw:
            self.is_raw = False
            restore(self.fd, self.state, only_if_raw=not self.in_foreground())

    def restore(self) -> None:
        """Restore the modes after another process was killed; see ``restore`` above."""
        restore(self.fd, self.state, only_if_raw=True)


def window_size(fd: int) -> tuple[int, int]:
    """Return the columns and rows of the terminal, (0, 0) if they are unknown."""
    import termios

    try:
        rows, columns = termios.tcgetwinsize(fd)
    except (OSError, ValueError, termios.error):  # no terminal, or it hung up
        return 0, 0
    return columns, rows


def handle_resize(on_resize: Callable[[], None]) -> Callable[[], None]:
    """Call ``on_resize`` in a handler for SIGWINCH; return a function that undoes this."""
    old = signal.signal(signal.SIGWINCH, lambda _number, _frame: on_resize())

    def undo() -> None:
        signal.signal(signal.SIGWINCH, signal.SIG_DFL if old is None else old)

    return undo


def handle_job_control(on_continue: Callable[[], None]) -> Callable[[], None]:
    """Ignore SIGTTIN and SIGTTOU, call ``on_continue`` on SIGCONT; return an undo function.

    So a VM in the background is not stopped when it reads its terminal; the read fails with EIO.
    Call this in the main thread. ``on_continue`` runs in a signal handler.
    """
    numbers = (signal.SIGTTIN, signal.SIGTTOU, signal.SIGCONT)
    old = {number: signal.getsignal(number) for number in numbers}
    signal.signal(signal.SIGTTIN, signal.SIG_IGN)
    signal.signal(signal.SIGTTOU, signal.SIG_IGN)
    signal.signal(signal.SIGCONT, lambda _number, _frame: on_continue())

    def undo() -> None:
        for number, handler in old.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)

    return undo
