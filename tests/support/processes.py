# SPDX-License-Identifier: BSD-3-Clause
"""Forked processes: one that says what it found, one that is killed in the end."""

from __future__ import annotations

import errno
import os
import signal
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


def in_child(act: Callable[[], object]) -> str:
    """Run ``act`` in a forked process; return what it returned or raised, or how it ended."""
    read_end, write_end = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.close(read_end)
            try:
                words = str(act())
            except OSError as error:
                words = errno.errorcode[error.errno or 0]
            os.write(write_end, words.encode())
        finally:
            os._exit(0)
    os.close(write_end)
    with open(read_end) as pipe:
        words = pipe.read()
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    return words if status == 0 else f"status {status}"


@contextmanager
def forked(work: Callable[[], None]) -> Iterator[int]:
    """Run ``work`` in a process of its own; it is killed in the end."""
    pid = os.fork()
    if not pid:
        try:
            work()
        finally:
            os._exit(0)
    try:
        yield pid
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
