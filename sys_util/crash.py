# SPDX-License-Identifier: BSD-3-Clause
"""Tell where a bug of ours is, without opening a file.

The standard traceback module reads source files and imports others; a jailed process can do
neither. File names, line numbers and functions are all in memory.
"""

from __future__ import annotations

from sys_util.typing import Final

_MAX_FRAMES: Final = 24
_MAX_CAUSES: Final = 8


def crash_report(error: BaseException) -> str:
    """Return the exception, its causes and the frames they came through, innermost last."""
    lines: list[str] = []
    for each in _with_causes(error):
        if lines:
            lines.append("which led to:")
        lines += _frames(each)[-_MAX_FRAMES:]
        lines.append(name_and_words(each))
    return "\n".join(lines)


def name_and_words(error: BaseException) -> str:
    """Return what an error is called, and what it says, if it can be told."""
    return f"{type(error).__qualname__}: {_words(error)}"


def _with_causes(error: BaseException) -> list[BaseException]:
    """Return the last few causes, the first of them first, and ``error``."""
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
    except Exception:  # noqa: BLE001 - an error that cannot even be told is told by its name
        return "no description"
