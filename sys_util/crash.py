# SPDX-License-Identifier: BSD-3-Clause
"""Tell where a bug of ours is, without opening a file.

The standard traceback module reads source files and imports others; a jailed process can do
neither. File names, line numbers and functions are all in memory.
"""

from __future__ import annotations

from sys_util.typing import Final

_MAX_FRAMES: Final = 24


def crash_report(error: BaseException) -> str:
    """Return the exception, its cause and the frames they came through, innermost last."""
    lines: list[str] = []
    cause = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    if cause is not None:
        lines += [crash_report(cause), "which led to:"]
    frames: list[str] = []
    trace = error.__traceback__
    while trace is not None:
        code = trace.tb_frame.f_code
        frames.append(f"  {code.co_filename}:{trace.tb_lineno} {code.co_qualname}")
        trace = trace.tb_next
    lines += frames[-_MAX_FRAMES:]
    lines.append(f"{type(error).__qualname__}: {error}")
    return "\n".join(lines)
