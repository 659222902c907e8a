# SPDX-License-Identifier: BSD-3-Clause
"""Write log lines: with levels, a filter by module and one sink for the whole process.

Python's logging package takes 10 ms to import, uses locks that can stay locked after a fork, and
writes what a guest sent to the terminal without escaping it. This module does none of the three.

    log = get_logger("devices.virtio.block")
    log.warning("%s: sector %#x is past the end", name, sector)

A line goes to the sink, which is stderr until ``set_sink`` says otherwise: the vmm adds syslog, a
device process sends its lines over its channel and the vmm calls ``emit`` for them.
"""

from __future__ import annotations

import time

from sys_util.line_writer import LineWriter
from sys_util.typing import TYPE_CHECKING, Final, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Callable

OFF: Final = 0
ERROR: Final = 1
WARNING: Final = 2
INFO: Final = 3
DEBUG: Final = 4

LEVEL_NAMES: Final = ("OFF", "ERROR", "WARN", "INFO", "DEBUG")

# The spellings of --log-level; crosvm's "trace" is our "debug".
LEVELS: Final = {
    "off": OFF,
    "error": ERROR,
    "warn": WARNING,
    "warning": WARNING,
    "info": INFO,
    "debug": DEBUG,
    "trace": DEBUG,
}

# The maximal size of a text after escaping. With time, level and module it makes a line that a pipe
# takes as a whole.
MAX_TEXT_BYTES: Final = 3840
_MAX_MODULE_CHARS: Final = 64

_SHORT_ESCAPES: Final = {"\t": "\\t", "\n": "\\n", "\r": "\\r"}

Sink: TypeAlias = "Callable[[int, str, str], None]"


class Filter:
    """Which lines are written: a default level, and exceptions for parts of the program.

    The name of an exception is one or more components of a module's dotted name: ``block`` and
    ``devices.virtio`` both match ``devices.virtio.block``. Where several match, the longest wins.
    """

    def __init__(self, default: int, exceptions: dict[str, int] | None = None) -> None:
        self.default = default
        self.exceptions = dict(exceptions or {})

    @classmethod
    def parse(cls, text: str) -> Filter:
        """Read ``info`` or ``warn,disk=off,devices.virtio=debug``.

        Raises:
            ValueError: a word in it is no level or no module name.
        """
        default = INFO
        exceptions: dict[str, int] = {}
        for word in text.split(","):
            name, equals, level = word.strip().rpartition("=")
            name = name.strip().replace("::", ".").strip(".")
            if bool(equals) != bool(name):
                raise ValueError(f"{word.strip()!r} has no module before '='")
            value = _parse_level(level)
            if equals:
                exceptions[name] = value
            else:
                default = value
        return cls(default, exceptions)

    def level(self, module: str) -> int:
        """Return the most talkative level that passes for ``module``."""
        dotted = f".{module}."
        matching = [name for name in self.exceptions if f".{name}." in dotted]
        return self.exceptions[max(matching, key=len)] if matching else self.default


def _parse_level(word: str) -> int:
    level = LEVELS.get(word.strip().lower())
    if level is None:
        raise ValueError(f"{word.strip()!r} is no level (off, error, warn, info, debug)")
    return level


def printable(text: str) -> str:
    """Return ``text`` with control, format and undecodable characters escaped, and cut if too long.

    Names, paths and messages in a log come from guests and other processes. Such a text must not
    move the cursor, change colours, reorder a line or look like a second line. It is cut to
    ``MAX_TEXT_BYTES`` after escaping.
    """
    shown = text[:MAX_TEXT_BYTES]
    if not shown.isprintable():
        shown = "".join(c if c.isprintable() else _escape(c) for c in shown)
    if len(text) <= MAX_TEXT_BYTES and len(shown.encode()) <= MAX_TEXT_BYTES:
        return shown
    # "ignore" drops half a character at the end.
    whole = shown.encode()[:MAX_TEXT_BYTES].decode("utf-8", "ignore")
    return f"{whole}… ({len(text)} characters)"


def _escape(character: str) -> str:
    """Return the escape that Python writes; its own codec would have to be imported from a file."""
    short = _SHORT_ESCAPES.get(character)
    if short is not None:
        return short
    code = ord(character)
    if code < 0x100:
        return f"\\x{code:02x}"
    return f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


def _line(level: int, module: str, text: str) -> str:
    now = time.time()
    stamp = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(now))
    return f"[{stamp}.{int(now * 1000) % 1000:03}Z {LEVEL_NAMES[level]:5} {module}] {text}"


def describe_lost(count: int) -> str:
    """Return the text of the line that is written instead of ``count`` lost ones."""
    lines = "1 line is" if count == 1 else f"{count} lines are"
    return f"{lines} missing here, which nobody read in time"


def _lost_line(count: int) -> str:
    return _line(WARNING, "log", describe_lost(count))


# A thread that logs must never wait for the reader of stderr: it may be a vCPU.
STDERR: Final = LineWriter(2, _lost_line)


def stderr_sink(level: int, module: str, text: str) -> None:
    """Write one line to stderr. The time is in UTC, because a jail has no time zone files."""
    STDERR.write(_line(level, module, text))


_filter = Filter(INFO)
_sink: Sink = stderr_sink


class Logger:
    """The log of one module. Make it with ``get_logger``."""

    __slots__ = ("_level", "_level_of", "module")

    def __init__(self, module: str) -> None:
        self.module = module
        self._level = OFF
        self._level_of: Filter | None = None

    def enabled(self, level: int) -> bool:
        """Return whether a line of this level would be written; ask before costly arguments."""
        if self._level_of is not _filter:
            self._level = _filter.level(self.module)
            self._level_of = _filter
        return level <= self._level

    def log(self, level: int, fmt: str, *args: object) -> None:
        """Write a line of any level."""
        if not self.enabled(level):
            return
        try:
            text = fmt % args if args else fmt
        except Exception:  # noqa: BLE001 - a mistake in a format string must not end a process
            text = f"{fmt} ({', '.join(type(arg).__name__ for arg in args)})"
        self._write(level, text)

    def _write(self, level: int, text: str) -> None:
        _sink(level, self.module, printable(text))

    def error(self, fmt: str, *args: object) -> None:
        """Log that something that was asked for will not happen."""
        self.log(ERROR, fmt, *args)

    def warning(self, fmt: str, *args: object) -> None:
        """Log that something is wrong, although the program continues."""
        self.log(WARNING, fmt, *args)

    def info(self, fmt: str, *args: object) -> None:
        """Log something that the user may want to know."""
        self.log(INFO, fmt, *args)

    def debug(self, fmt: str, *args: object) -> None:
        """Log something that a developer may want to know."""
        self.log(DEBUG, fmt, *args)

    def exception(self, error: BaseException, fmt: str, *args: object) -> None:
        """Report a bug of ours: an error line, then the stack, one line for each frame."""
        self.error(fmt, *args)
        if not self.enabled(ERROR):
            return
        from sys_util.crash import crash_report  # a jailed process cannot use traceback

        for line in crash_report(error).splitlines():
            self.log(ERROR, "%s", line)

    def limited(self, burst: int = 10, seconds: float = 10.0) -> Logger:
        """Return a logger for events that a guest can cause: at most ``burst`` in ``seconds``.

        The first line after a pause says how many were left out.
        """
        return _LimitedLogger(self.module, burst, seconds)


class LineLimit:
    """Allow at most ``burst`` lines and ``max_bytes`` in ``seconds``; count the lines left out."""

    __slots__ = ("_burst", "_bytes", "_count", "_max_bytes", "_seconds", "_start", "_suppressed")

    def __init__(self, burst: int, seconds: float, max_bytes: int = 1 << 20) -> None:
        self._burst = burst
        self._seconds = seconds
        self._max_bytes = max_bytes
        self._start = 0.0
        self._count = burst  # so that the first line starts a period
        self._bytes = 0
        self._suppressed = 0

    def allows(self) -> bool:
        """Return whether one more line may be written now."""
        if self._count >= self._burst or self._bytes >= self._max_bytes:
            now = time.monotonic()
            if self._start and now - self._start < self._seconds:
                self._suppressed += 1
                return False
            self._start, self._count, self._bytes = now, 0, 0
        self._count += 1
        return True

    def charge(self, size_bytes: int) -> None:
        """Count the bytes of a line that was written."""
        self._bytes += size_bytes

    def mark(self, text: str) -> str:
        """Return the text with the number of lines that were left out before it, if any."""
        if self._suppressed:
            text = f"{text} ({self._suppressed} more were not logged)"
            self._suppressed = 0
        return text


class _LimitedLogger(Logger):
    __slots__ = ("_limit",)

    def __init__(self, module: str, burst: int, seconds: float) -> None:
        super().__init__(module)
        self._limit = LineLimit(burst, seconds)

    def log(self, level: int, fmt: str, *args: object) -> None:
        if self.enabled(level) and self._limit.allows():
            super().log(level, fmt, *args)

    def _write(self, level: int, text: str) -> None:
        super()._write(level, self._limit.mark(text))


def get_logger(module: str) -> Logger:
    """Return a logger; ``module`` is the dotted name that ``--log-level`` matches."""
    return Logger(module)


def set_sink(sink: Sink) -> None:
    """Send the lines of this process to ``sink(level, module, text)`` from now on."""
    global _sink
    _sink = sink


def current_filter() -> Filter:
    """Return what decides which lines are written."""
    return _filter


def set_filter(new_filter: Filter) -> None:
    """Choose which lines of this process are written."""
    global _filter
    _filter = new_filter


def emit(level: int, module: str, text: str, limit: LineLimit) -> None:
    """Write a line that another process logged, with the filter and the sink of this process.

    The other process is not trusted: the level is forced into its range, and the text is escaped
    again. ``limit`` counts the bytes after escaping.
    """
    level = min(max(level, ERROR), DEBUG)
    if level <= _filter.level(module) and limit.allows():
        module, text = printable(module)[:_MAX_MODULE_CHARS], limit.mark(printable(text))
        limit.charge(len(module) + len(text.encode()))
        _sink(level, module, text)
