# SPDX-License-Identifier: BSD-3-Clause
"""How a device process ended, and who is to blame."""

from __future__ import annotations

from crosvm_py.exit_status import EXIT_HOST
from seccomp import syscall_name
from sys_util import signal
from sys_util.typing import Final

_MAX_CAUSE_CHARS: Final = 512


class DeviceDeath:
    """What is known of the end of a device process, from itself and from the warden."""

    def __init__(self) -> None:
        self.verdict = ""  # why the vmm ended it, if it did
        self.denied_call: int | None = None  # the system call that seccomp denied
        self.report = ""  # the error that the process reported before it exited
        self.status: int | None = None  # as os.waitstatus_to_exitcode returns it
        self.cause = ""  # what the warden adds, such as "the host ran out of memory"

    @property
    def by_others(self) -> bool:
        """Whether the process is not to blame: another process killed it, or the host failed."""
        wrong = self.verdict or self.denied_call is not None or self.cause
        return not wrong and self.status in (-signal.SIGKILL, EXIT_HOST)

    def describe(self, policy_name: str) -> str:
        """Return the cause in one line, with the device's own report if that is short."""
        if self.verdict:
            return f"ended by the vmm: {self.verdict}"
        if self.denied_call is not None:
            name = syscall_name(self.denied_call)
            return f"killed by seccomp: {name} ({self.denied_call}), policy {policy_name}"
        if self.status is not None and self.status < 0:
            cause = f": {self.cause}" if self.cause else ""
            return f"killed by {signal.signal_name(-self.status)}{cause}"
        if self.status is None:
            return "ended"
        words = f": {self.report}" if self.is_told_in_one_line else ""
        return f"exited with status {self.status}{words}"

    @property
    def is_told_in_one_line(self) -> bool:
        """Whether the report is itself the cause: one short line on what the host refused."""
        is_short = len(self.report) <= _MAX_CAUSE_CHARS and "\n" not in self.report
        return self.status == EXIT_HOST and bool(self.report) and is_short
