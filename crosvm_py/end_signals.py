# SPDX-License-Identifier: BSD-3-Clause
"""The signals that end a VM in good order, and the signal settings inherited from our parent.

A process inherits which signals are ignored and which are blocked (execve(2)). ``nohup`` ignores
SIGHUP on purpose, and so does a shell with SIGINT for background jobs; these stay ignored. But a
blocked signal, or an ignored SIGCHLD, is an accident: with the first we could not stop vCPUs, and
with the second we could not learn how a child ended.
"""

from __future__ import annotations

from sys_util import signal
from sys_util.typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import FrameType

END_SIGNALS: Final = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


def reset_inherited_signals() -> None:
    """Unblock all signals and stop ignoring SIGCHLD, for commands that have child processes."""
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)


def handle_end_signals(handler: Callable[[int, FrameType | None], None]) -> None:
    """Set ``handler`` for the end signals, except for those that are ignored."""
    for signum in END_SIGNALS:
        if signal.getsignal(signum) != signal.SIG_IGN:
            signal.signal(signum, handler)


def hold_end_signals() -> None:
    """Block the end signals until ``release_end_signals``."""
    signal.pthread_sigmask(signal.SIG_BLOCK, END_SIGNALS)


def release_end_signals() -> None:
    """Unblock the end signals; those that came meanwhile are handled now. May be called again."""
    signal.pthread_sigmask(signal.SIG_UNBLOCK, END_SIGNALS)
