# SPDX-License-Identifier: BSD-3-Clause
"""What a filter does with a system call: SECCOMP_RET_* of ``<linux/seccomp.h>`` and their names."""

from __future__ import annotations

from sys_util.typing import Final, NamedTuple

SECCOMP_RET_KILL_PROCESS: Final = 0x80000000
SECCOMP_RET_KILL_THREAD: Final = 0x00000000
SECCOMP_RET_TRAP: Final = 0x00030000
SECCOMP_RET_ERRNO: Final = 0x00050000
SECCOMP_RET_USER_NOTIF: Final = 0x7FC00000
SECCOMP_RET_TRACE: Final = 0x7FF00000
SECCOMP_RET_LOG: Final = 0x7FFC0000
SECCOMP_RET_ALLOW: Final = 0x7FFF0000
SECCOMP_RET_DATA: Final = 0x0000FFFF

MAX_ERRNO: Final = 4095  # the kernel caps the data of SECCOMP_RET_ERRNO there

_KIND_VALUES: Final = {
    "allow": SECCOMP_RET_ALLOW,
    "errno": SECCOMP_RET_ERRNO,
    "trap": SECCOMP_RET_TRAP,
    "log": SECCOMP_RET_LOG,
    "trace": SECCOMP_RET_TRACE,
    "user-notify": SECCOMP_RET_USER_NOTIF,
    "kill-process": SECCOMP_RET_KILL_PROCESS,
    "kill-thread": SECCOMP_RET_KILL_THREAD,
}
_VALUE_KINDS: Final = {value: kind for kind, value in _KIND_VALUES.items()}


class Action(NamedTuple):
    """One SECCOMP_RET_* with its data, which only the kind ``errno`` uses."""

    kind: str
    data: int = 0

    @property
    def value(self) -> int:
        """The 32 bits that the BPF program returns."""
        return _KIND_VALUES[self.kind] | self.data

    @classmethod
    def from_value(cls, value: int) -> Action:
        """Decode the value that a program returned. As in the kernel, an unknown action kills."""
        kind = _VALUE_KINDS.get(value & ~SECCOMP_RET_DATA, "kill-process")
        return cls(kind, value & SECCOMP_RET_DATA)

    def __str__(self) -> str:
        if self.kind != "errno":
            return self.kind
        import errno

        return f"return {errno.errorcode.get(self.data, self.data)}"


ALLOW: Final = Action("allow")
TRAP: Final = Action("trap")
LOG: Final = Action("log")
KILL_PROCESS: Final = Action("kill-process")
KILL_THREAD: Final = Action("kill-thread")
