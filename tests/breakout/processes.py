# SPDX-License-Identifier: BSD-3-Clause
"""Attempts on other processes: the vmm, the warden, a sibling, by the host's numbers for them."""

from __future__ import annotations

import errno
import os
import struct
from typing import TYPE_CHECKING, Final

from tests.breakout.attempt import Attempt, Cell, every, just, on_each, refuse
from tests.breakout.files import AT_FDCWD
from tests.breakout.hands import address, call

if TYPE_CHECKING:
    from collections.abc import Callable

GROUP: Final = "processes"

PTRACE_ATTACH: Final = 16
PTRACE_SEIZE: Final = 0x4206
PTRACE_DETACH: Final = 17
_PAGE: Final = bytearray(4096)


def with_pidfd(act: Callable[[int], object]) -> Callable[[int], object]:
    def deed(pid: int) -> None:
        pidfd = call("pidfd_open", pid, 0)
        try:
            act(pidfd)
        finally:
            call("close", pidfd)

    return deed


def seize(pid: int) -> None:
    call("ptrace", PTRACE_SEIZE, pid, 0, 0)


def read_memory(pid: int) -> None:
    local = struct.pack("QQ", address(_PAGE), 8)
    remote = struct.pack("QQ", address(_PAGE), 8)
    call("process_vm_readv", pid, local, 1, remote, 1, 0)


def write_memory(pid: int) -> None:
    local = struct.pack("QQ", address(_PAGE), 1)
    remote = struct.pack("QQ", address(_PAGE), 1)
    call("process_vm_writev", pid, local, 1, remote, 1, 0)


def open_memory(pid: int) -> None:
    call("close", call("openat", AT_FDCWD, f"/proc/{pid}/mem\0".encode(), os.O_RDONLY, 0))


def signal_group(_cell: Cell) -> None:
    """Signal 0 reaches ourselves in any case: it counts where the group is not ours alone."""
    if call("getpgid", 0) == call("getpid"):
        raise refuse("kill", errno.ESRCH)
    call("kill", 0, 0)


def own_signals(fd: int, pid: int) -> None:
    """Have the kernel send SIGIO for us (F_SETOWN)."""
    call("fcntl", fd, 8, pid)


def become_dumpable(_cell: Cell) -> None:
    call("prctl", 4, 1, 0, 0, 0)
    call("prctl", 4, 0, 0, 0, 0)


# What is done to each of the three. Signal 0 asks for the permission and does no harm.
_DEEDS: Final[tuple[tuple[str, Callable[[int], object], bool], ...]] = (
    ("signal", lambda pid: call("kill", pid, 0), True),
    ("signal a thread of", lambda pid: call("tgkill", pid, pid, 0), True),
    ("queue a signal for", lambda pid: call("rt_sigqueueinfo", pid, 10, bytearray(128)), False),
    ("signal by pidfd", with_pidfd(lambda fd: call("pidfd_send_signal", fd, 0, 0, 0)), True),
    (
        "take a descriptor of",
        with_pidfd(lambda fd: call("close", call("pidfd_getfd", fd, 0, 0))),
        True,
    ),
    ("attach to", lambda pid: call("ptrace", PTRACE_ATTACH, pid, 0, 0), False),
    ("seize", seize, False),
    ("read the memory of", read_memory, True),
    ("write the memory of", write_memory, False),
    ("open the memory of", open_memory, True),
    ("compare with", lambda pid: call("kcmp", pid, pid, 0, 0, 1), False),
    ("limit", lambda pid: call("prlimit64", pid, 7, 0, bytearray(16)), True),
    ("ask for the priority of", lambda pid: call("getpriority", 0, pid), True),
    (
        "move to another processor",
        lambda pid: call("sched_getaffinity", pid, 8, bytearray(8)),
        True,
    ),
    ("move the pages of", lambda pid: call("move_pages", pid, 0, 0, 0, 0, 0), True),
    ("ask for the session of", lambda pid: call("getsid", pid), True),
)


def _rows() -> list[Attempt]:
    rows = []
    for at, whom in enumerate(("the vmm", "the warden", "a sibling")):
        for verb, deed, proof in _DEEDS:

            def act(cell: Cell, deed: Callable[[int], object] = deed, at: int = at) -> object:
                return deed(cell.targets()[at][1])

            rows.append(Attempt(GROUP, f"{verb} {whom}", act, jail=True, proof=proof))
    return rows


ATTEMPTS: Final = (
    *_rows(),
    Attempt(GROUP, "signal everybody", just("kill", -1, 0), jail=True),
    Attempt(GROUP, "signal the process group", signal_group, jail=True),
    Attempt(
        GROUP, "join the warden's group", lambda cell: call("setpgid", 0, cell.warden), jail=True
    ),
    Attempt(GROUP, "find the parent", just("getppid"), proof=True),
    Attempt(GROUP, "wait for others", just("wait4", -1, 0, 1, 0), jail=True),
    Attempt(
        GROUP,
        "have the kernel signal the vmm",
        lambda cell: own_signals(cell.channel, cell.vmm),
        jail=True,
        proof=True,
    ),
    Attempt(
        GROUP,
        "have the kernel signal by each descriptor",
        on_each(every, lambda fd: call("fcntl", fd, 4, 0o20000)),
    ),
    Attempt(GROUP, "trace the parent", just("ptrace", 0, 0, 0, 0)),
    Attempt(GROUP, "let anybody trace it", just("prctl", 0x59616D61, -1, 0, 0, 0)),
    Attempt(GROUP, "become dumpable", become_dumpable, proof=True),
)
