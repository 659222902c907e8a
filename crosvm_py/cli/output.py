# SPDX-License-Identifier: BSD-3-Clause
"""The one place where a command writes to stdout and stderr."""

from __future__ import annotations

import os

from sys_util.log import STDERR, printable
from sys_util.typing import Final

# A command has ended when it tells an error: its reader may need a moment for what came before.
_PATIENCE_SECONDS: Final = 1.0


def write_out(text: str) -> None:
    """Write to stdout, whole or not at all; ``crosvm doctor | head`` is nobody's error."""
    data = text.encode("utf-8", "backslashreplace")
    try:
        while data:
            data = data[os.write(1, data) :]
    except BrokenPipeError:
        return


def write_error(message: str) -> None:
    """Write one line about what went wrong to stderr, safe to show on any terminal."""
    STDERR.write(f"crosvm: {printable(message)}", _PATIENCE_SECONDS)
