# SPDX-License-Identifier: BSD-3-Clause
"""Runs in the test host: ``in_terminal.py COLUMNSxROWS CMD…`` gives CMD a terminal of its own.

stdin is what the user types. A line that begins with Ctrl-] is for us: it has a new size.
"""

from __future__ import annotations

import os
import pty
import select
import sys
import termios

RESIZE = b"\x1d"


def set_size(fd: int, text: str) -> None:
    columns, rows = text.split("x")
    termios.tcsetwinsize(fd, (int(rows), int(columns)))


def main(arguments: list[str]) -> int:
    pid, terminal = pty.fork()
    if pid == 0:
        set_size(0, arguments[0])
        os.execvp(arguments[1], arguments[1:])
    sources = [0, terminal]
    while True:
        ready, _, _ = select.select(sources, [], [])
        if 0 in ready:
            typed = os.read(0, 4096)
            if not typed:
                sources.remove(0)
            if typed.startswith(RESIZE):
                size, _, typed = typed[1:].partition(b"\n")
                set_size(terminal, size.decode())
            os.write(terminal, typed)
        if terminal in ready:
            try:
                shown = os.read(terminal, 65536)
            except OSError:  # the last program has gone
                return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
            os.write(1, shown)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
