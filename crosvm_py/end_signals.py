# SPDX-License-Identifier: BSD-3-Clause
"""The signals that end a VM in order, and what of all signals a parent process leaves to us.

A process inherits which signals are ignored, and which are blocked (execve(2)). ``nohup``, and a
shell for SIGINT of what it starts in the background, ignore a signal so that it ends nothing: it
stays ignored. A blocked signal, or a SIGCHLD that is ignored, is an accident: with the first no
vCPU could be stopped, with the second nobody would learn how a child ended.
"""

from __future__ import annotations

import signal

from sys_util.typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import FrameType

END_SIGNALS: Final = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


def undo_accidents() -> None:
    """Unblock every signal, and learn of the end of children: for commands that have some."""
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)


def handle_end_signals(handler: Callable[[int, FrameType | None], None]) -> None:
    """Have these signals handled, but for those that are ignored."""
    for signum in END_SIGNALS:
        if signal.getsignal(signum) is not signal.SIG_IGN:
            signal.signal(signum, handler)


def hold_end_signals() -> None:
    """Let them wait until ``release_end_signals``."""
    signal.pthread_sigmask(signal.SIG_BLOCK, END_SIGNALS)


def release_end_signals() -> None:
    """Let those through that came meanwhile; may be called again."""
    signal.pthread_sigmask(signal.SIG_UNBLOCK, END_SIGNALS)
