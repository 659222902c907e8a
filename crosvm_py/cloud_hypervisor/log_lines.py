# SPDX-License-Identifier: BSD-3-Clause
"""Log lines in the form of Cloud Hypervisor, which Kata reads: the level is followed by a colon."""

from __future__ import annotations

import os
import time

from sys_util import log
from sys_util.errors import HostError
from sys_util.line_writer import LineWriter
from sys_util.typing import Final

_WORDS: Final = {log.ERROR: "ERRO", log.WARNING: "WARN", log.INFO: "INFO", log.DEBUG: "DEBG"}
_LEVELS: Final = (log.WARNING, log.INFO, log.DEBUG)
_STDERR: Final = 2


def configure_log(path: str | None, verbosity: int) -> None:
    """Write the log to a file or to stderr; ``verbosity`` is how often ``-v`` was given.

    Raises:
        HostError: the host does not open the file.
    """
    fd = _STDERR
    if path is not None:
        try:
            fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise HostError("open --log-file", path) from error
    begun, writer = time.monotonic(), LineWriter(fd, _lost)

    def sink(level: int, module: str, text: str) -> None:
        seconds = time.monotonic() - begun
        head = f"cloud-hypervisor: {seconds:.6f}s: <vmm> {_WORDS.get(level, 'INFO')}:{module} -- "
        writer.write(f"{head}{text}")

    log.set_filter(log.Filter(_LEVELS[min(verbosity, len(_LEVELS) - 1)]))
    log.set_sink(sink)


def _lost(count: int) -> str:
    return f"cloud-hypervisor: 0s: <vmm> WARN:log -- {count} lines were lost"
