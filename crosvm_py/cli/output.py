# SPDX-License-Identifier: BSD-3-Clause
"""The one place where a command writes to stdout and stderr."""

from __future__ import annotations

import os

from sys_util.log import STDERR, printable
from sys_util.typing import Final

# A command that reports an error has nothing else to do, so it can wait for a slow reader.
_PATIENCE_SECONDS: Final = 1.0


def write_out(text: str) -> None:
    """Write ``text`` to stdout. A closed pipe, as in ``crosvm doctor | head``, is no error."""
    data = text.encode("utf-8", "backslashreplace")
    try:
        while data:
            data = data[os.write(1, data) :]
    except BrokenPipeError:
        return


def write_error(message: str) -> None:
    """Write one error line to stderr, without characters that would control a terminal."""
    STDERR.write(f"crosvm: {printable(message)}", _PATIENCE_SECONDS)
