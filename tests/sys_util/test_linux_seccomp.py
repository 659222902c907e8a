# SPDX-License-Identifier: BSD-3-Clause
"""Filters of system calls and the report of a denied call, tried on the kernel.

The programs are written by hand, one instruction each 8 bytes (linux/filter.h).
"""

from __future__ import annotations

import os
import signal
import socket
import threading
from typing import TYPE_CHECKING

import pytest

from sys_util import linux
from tests.support.processes import in_child

if TYPE_CHECKING:
    from collections.abc import Callable

EXIT_DENIED = 128 + signal.SIGSYS
GETPPID = 110
RET_ALLOW = bytes.fromhex("0600 00 00 0000ff7f")
RET_TRAP = bytes.fromhex("0600 00 00 00000300")
LOAD_NR = bytes.fromhex("2000 00 00 00000000")


def deny(number: int) -> bytes:
    """Trap one system call and allow the others."""
    skip_unless = b"\x15\x00\x00\x01" + number.to_bytes(4, "little")
    return LOAD_NR + skip_unless + RET_TRAP + RET_ALLOW


def report_after(
    act: Callable[[], object],
    head: bytes = b"head",
    status: int = EXIT_DENIED,
    *,
    names_thread: bool = False,
) -> tuple[int, bytes]:
    """Run ``act`` in a process in which getppid is denied; return its status and its report."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    pid = os.fork()
    if pid == 0:
        try:
            linux.prctl(linux.PR_SET_NO_NEW_PRIVS, 1)
            linux.report_denied_calls(
                theirs.fileno(), head, status=status, names_thread=names_thread
            )
            linux.load_seccomp_filter(deny(GETPPID))
            act()
        finally:
            os._exit(0)
    theirs.close()
    ended = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    with ours:
        return ended, ours.recv(100)


def test_denied_call_is_reported_and_ends_the_process() -> None:
    status, report = report_after(os.getppid)
    assert (status, report) == (EXIT_DENIED, b"head\xce" + GETPPID.to_bytes(4, "big"))


def test_allowed_call_is_not_reported() -> None:
    assert report_after(os.getpid) == (0, b"")


def in_thread() -> None:
    thread = threading.Thread(target=os.getppid)
    thread.start()
    thread.join()


def test_denied_call_of_a_thread_ends_the_whole_process() -> None:
    assert report_after(in_thread)[0] == EXIT_DENIED


@pytest.mark.parametrize(
    ("all_threads", "ending"), [(True, f"status {EXIT_DENIED}"), (False, "None")]
)
def test_filter_is_for_threads_that_run_already_if_all_are_meant(
    all_threads: bool, ending: str
) -> None:
    def act() -> None:
        loaded = threading.Event()
        thread = threading.Thread(target=lambda: loaded.wait() and os.getppid())
        thread.start()
        linux.report_denied_calls(2, b"")
        linux.prctl(linux.PR_SET_NO_NEW_PRIVS, 1)
        linux.load_seccomp_filter(deny(GETPPID), all_threads=all_threads)
        loaded.set()
        thread.join()

    assert in_child(act) == ending


def test_thread_with_another_filter_prevents_one_for_all() -> None:
    def act() -> None:
        linux.prctl(linux.PR_SET_NO_NEW_PRIVS, 1)
        loaded, done = threading.Event(), threading.Event()

        def other() -> None:
            linux.load_seccomp_filter(RET_ALLOW)
            loaded.set()
            done.wait()

        threading.Thread(target=other).start()
        loaded.wait()
        try:
            linux.load_seccomp_filter(RET_ALLOW, all_threads=True)
        finally:
            done.set()

    assert in_child(act) == "ESRCH"


def test_signal_mask_does_not_hide_a_denied_call() -> None:
    def act() -> None:
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGSYS})
        os.getppid()

    # The kernel ends the process: it cannot call the handler of a signal that is blocked.
    assert report_after(act) == (-signal.SIGSYS, b"")


@pytest.mark.parametrize("program", [b"", b"12345678", RET_ALLOW[:7]], ids=["none", "bad", "half"])
def test_filter_that_is_none_is_refused(program: bytes) -> None:
    def load() -> None:
        linux.prctl(linux.PR_SET_NO_NEW_PRIVS, 1)
        linux.load_seccomp_filter(program)

    assert in_child(load) == "EINVAL"


def test_filter_without_no_new_privs_is_refused() -> None:
    def act() -> None:
        if os.geteuid() == 0:  # root needs none
            os.setuid(65534)
        linux.load_seccomp_filter(RET_ALLOW)

    assert in_child(act) == "EACCES"


def test_report_names_the_thread_and_the_status_is_chosen() -> None:
    def report(act: Callable[[], object]) -> tuple[int, bytes]:
        return report_after(act, b"", 33, names_thread=True)

    in_another = threading.Thread(target=os.getppid)
    assert report(os.getppid) == (33, b"\xce\0\0\0n\xc2")
    assert report(in_another.start) == (33, b"\xce\0\0\0n\xc3")


def test_head_of_a_report_is_bounded() -> None:
    with pytest.raises(OSError, match="Invalid argument"):
        linux.report_denied_calls(2, bytes(59))


def test_report_to_nobody_still_ends_the_process() -> None:
    def act() -> None:
        read_end, write_end = os.pipe()
        os.close(read_end)
        signal.signal(signal.SIGPIPE, signal.SIG_IGN)
        linux.report_denied_calls(write_end, b"")
        linux.prctl(linux.PR_SET_NO_NEW_PRIVS, 1)
        linux.load_seccomp_filter(deny(GETPPID))
        os.getppid()

    assert in_child(act) == f"status {EXIT_DENIED}"
