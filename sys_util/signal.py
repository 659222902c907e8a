# SPDX-License-Identifier: BSD-3-Clause
"""The names of ``signal`` that this project uses, without the millisecond that importing it takes.

Python's own module makes enumerations of signals and handlers. Here both are numbers. A type
checker sees Python's own module.
"""

from __future__ import annotations

from sys_util.typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from signal import SIG_BLOCK as SIG_BLOCK
    from signal import SIG_DFL as SIG_DFL
    from signal import SIG_IGN as SIG_IGN
    from signal import SIG_SETMASK as SIG_SETMASK
    from signal import SIG_UNBLOCK as SIG_UNBLOCK
    from signal import SIGCHLD as SIGCHLD
    from signal import SIGCONT as SIGCONT
    from signal import SIGHUP as SIGHUP
    from signal import SIGINT as SIGINT
    from signal import SIGKILL as SIGKILL
    from signal import SIGPIPE as SIGPIPE
    from signal import SIGQUIT as SIGQUIT
    from signal import SIGRTMIN as SIGRTMIN
    from signal import SIGSTOP as SIGSTOP
    from signal import SIGTERM as SIGTERM
    from signal import SIGTSTP as SIGTSTP
    from signal import SIGTTIN as SIGTTIN
    from signal import SIGTTOU as SIGTTOU
    from signal import SIGUSR1 as SIGUSR1
    from signal import SIGUSR2 as SIGUSR2
    from signal import SIGWINCH as SIGWINCH
    from signal import SIGXCPU as SIGXCPU
    from signal import SIGXFSZ as SIGXFSZ
    from signal import getsignal as getsignal
    from signal import pidfd_send_signal as pidfd_send_signal
    from signal import pthread_sigmask as pthread_sigmask
    from signal import raise_signal as raise_signal
    from signal import set_wakeup_fd as set_wakeup_fd
    from signal import signal as signal
    from signal import valid_signals as valid_signals
else:
    from _signal import *  # noqa: F403 - what Python's own module passes on, too


# Of two names of one signal the last counts, which is the usual one: SIGABRT, not SIGIOT.
_NAMES: Final[dict[int, str]] = {
    globals()[name]: name
    for name in sorted(globals(), reverse=True)
    if name.startswith("SIG") and not name.startswith("SIG_")
}


def signal_name(number: int) -> str:
    """Return the name of a signal, such as SIGTERM; most real-time signals have only a number."""
    return _NAMES.get(number, f"signal {number}")
