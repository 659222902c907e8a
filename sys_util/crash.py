# SPDX-License-Identifier: BSD-3-Clause
"""Report where an exception was raised, without opening a file.

Python's traceback module reads source files and imports other modules. A jailed process can do
neither, but file names, line numbers and function names are in its memory.
"""

from __future__ import annotations

from sys_util.typing import Final

_MAX_FRAMES: Final = 24
_MAX_CAUSES: Final = 8


def crash_report(error: BaseException) -> str:
    """Return the exception, its causes and their stack frames, the innermost frame last."""
    lines: list[str] = []
    for each in _with_causes(error):
        if lines:
            lines.append("which led to:")
        lines += _frames(each)[-_MAX_FRAMES:]
        lines.append(name_and_words(each))
    return "\n".join(lines)


def name_and_words(error: BaseException) -> str:
    """Return the name of the error's class and its text."""
    return f"{type(error).__qualname__}: {_words(error)}"


def _with_causes(error: BaseException) -> list[BaseException]:
    """Return the nearest causes of ``error``, the oldest first, and ``error`` itself last."""
    found = [error]
    while len(found) <= _MAX_CAUSES:
        last = found[-1]
        cause = last.__cause__ or (None if last.__suppress_context__ else last.__context__)
        if cause is None or cause in found:
            break
        found.append(cause)
    return found[::-1]


def _frames(error: BaseException) -> list[str]:
    frames: list[str] = []
    trace = error.__traceback__
    while trace is not None:
        code = trace.tb_frame.f_code
        frames.append(f"  {code.co_filename}:{trace.tb_lineno} {code.co_qualname}")
        trace = trace.tb_next
    return frames


def _words(error: BaseException) -> str:
    try:
        return str(error)
    except Exception:  # noqa: BLE001 - the error's own __str__ may fail in any way
        return "no description"
