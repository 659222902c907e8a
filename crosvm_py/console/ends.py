# SPDX-License-Identifier: BSD-3-Clause
"""Open the output and input of one ``--serial`` port on the host, for every kind of hardware.

``pty`` makes a pseudo-terminal and logs its name; ``screen /dev/pts/N`` then shows the guest's
terminal. We keep its user's side open, so that programs can close it and open it again.
"""

from __future__ import annotations

import errno
import os

from crosvm_py.console.input import ConsoleInput, TerminalInput, input_from, open_input
from crosvm_py.console.targets import (
    open_file,
    open_stream,
    open_syslog,
    open_unix,
    open_unix_stream,
)
from sys_util.errors import ConfigError, raise_host_error
from sys_util.log import get_logger
from sys_util.nonblocking import reopen
from sys_util.typing import TYPE_CHECKING, Final, NamedTuple

if TYPE_CHECKING:
    from crosvm_py.config import SerialSpec
    from crosvm_py.console.targets import Target
    from crosvm_py.console.terminal import Terminal

log = get_logger("crosvm.serial")

STDIN: Final = 0
STDOUT: Final = 1

SYSLOG_TAG: Final = "crosvm-guest"

_TYPES: Final = ("stdout", "file", "sink", "syslog", "unix", "unix-stream", "pty")


class Ends(NamedTuple):
    """The output and input of one port.

    ``size_fd`` is the terminal that shows the port, whose size the guest gets, or -1. ``pty_fd`` is
    the user's side of a pseudo-terminal, or -1; only this one is owned here. ``pty_name`` is its
    path.
    """

    target: Target | None = None
    input: ConsoleInput | None = None
    terminal: Terminal | None = None
    size_fd: int = -1
    pty_fd: int = -1
    pty_name: str = ""

    def close(self) -> None:
        """Close all descriptors; call it only if nobody has taken them over."""
        if self.target is not None:
            os.close(self.target.fd)
        if self.input is not None:
            self.input.close()
        if self.pty_fd >= 0:
            os.close(self.pty_fd)


def open_ends(spec: SerialSpec) -> Ends:
    """Open the output and input of ``spec``.

    Raises:
        ConfigError: the spec makes no sense.
        HostError: something cannot be opened; nothing stays open.
    """
    ends = _open_pty(spec) if spec.type == "pty" else Ends(open_target(spec))
    try:
        return _open_input(spec, ends)
    except BaseException:
        ends.close()
        raise


def open_target(spec: SerialSpec) -> Target | None:
    """Open what the port writes to; ``None`` for a sink.

    Raises:
        ConfigError: the spec makes no sense.
        HostError: it cannot be opened.
    """
    if spec.type not in _TYPES:
        *most, last = _TYPES
        raise ConfigError(f"--serial type={spec.type}: not {', '.join(most)} or {last}")
    if spec.type == "sink":
        return None
    if spec.type == "stdout":
        return open_stream(STDOUT, "stdout")
    if spec.type == "syslog":
        return open_syslog(SYSLOG_TAG)
    if not spec.path:
        raise ConfigError(f"--serial type={spec.type}: path= is missing")
    openers = {"file": open_file, "unix": open_unix, "unix-stream": open_unix_stream}
    return openers[spec.type](spec.path)


def open_stdin() -> tuple[ConsoleInput | None, Terminal | None]:
    """Return stdin and, if it is a terminal, that; ``None`` twice if stdin is closed.

    Raises:
        HostError: it cannot be read.
    """
    from crosvm_py.console import terminal

    try:
        if not terminal.is_terminal(STDIN):
            return input_from(STDIN), None
        owner = terminal.Terminal(STDIN)
        own = reopen(STDIN, os.O_RDONLY)
        fd = os.dup(STDIN) if own is None else own
        return TerminalInput(fd, owner, terminal.EscapeKey()), owner
    except OSError as error:
        if error.errno == errno.EBADF:
            return None, None
        raise_host_error("read", "stdin", error)


def _open_input(spec: SerialSpec, ends: Ends) -> Ends:
    if spec.type == "stdout" and os.isatty(STDOUT):
        ends = ends._replace(size_fd=STDOUT)
    if spec.stdin:
        source, terminal = open_stdin()
        size_fd = ends.size_fd if terminal is None else STDIN
        return ends._replace(input=source, terminal=terminal, size_fd=size_fd)
    if spec.input is not None:
        return ends._replace(input=open_input(spec.input))
    if spec.input_unix_stream and ends.target is not None:
        return ends._replace(input=ConsoleInput(os.dup(ends.target.fd)))
    return ends


def _open_pty(spec: SerialSpec) -> Ends:
    from crosvm_py.console import terminal
    from crosvm_py.console.targets import Target

    try:
        controller, user_side = os.openpty()
        # Without this the line discipline would send the guest's output back as input.
        terminal.make_raw(user_side)
        os.set_blocking(controller, False)
        name = os.ttyname(user_side)
        target = Target(f"--serial type=pty ({name})", controller)
        source = ConsoleInput(os.dup(controller))
    except OSError as error:
        raise_host_error("open", "--serial type=pty", error, "is /dev/pts mounted?")
    log.info("%s num=%d is %s", spec.hardware, spec.num, name)
    return Ends(target, source, size_fd=user_side, pty_fd=user_side, pty_name=name)
