# SPDX-License-Identifier: BSD-3-Clause
"""The signals that end a VM in order, and holding them for a moment."""

from __future__ import annotations

import signal

from sys_util.typing import Final

END_SIGNALS: Final = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


def hold_end_signals() -> None:
    """Let them wait until ``release_end_signals``."""
    signal.pthread_sigmask(signal.SIG_BLOCK, END_SIGNALS)


def release_end_signals() -> None:
    """Let those through that came meanwhile; may be called again."""
    signal.pthread_sigmask(signal.SIG_UNBLOCK, END_SIGNALS)
