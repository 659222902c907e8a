# SPDX-License-Identifier: BSD-3-Clause
"""The logger: its filter, how it escapes hostile text, and how it limits a flood of lines."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sys_util import log
from sys_util.log import Filter, LineLimit, emit, get_logger, printable

Line = tuple[int, str, str]


@pytest.fixture
def lines(records: list[Line]) -> Iterator[list[Line]]:
    yield records
    log.set_filter(Filter(log.INFO))


@pytest.mark.parametrize(
    ("text", "module", "level"),
    [
        pytest.param("info", "disk", log.INFO, id="default"),
        pytest.param("debug,disk=off", "disk", log.OFF, id="exception"),
        pytest.param("debug,disk=off", "diskette", log.DEBUG, id="whole-components"),
        pytest.param("warn,block=debug", "devices.virtio.block", log.DEBUG, id="component"),
        pytest.param("devices.virtio=off,devices=debug", "devices.virtio.rng", log.OFF, id="long"),
        pytest.param("devices::virtio=error", "devices.virtio.rng", log.ERROR, id="rust-spelling"),
        pytest.param(" WARN , Disk = off", "Disk", log.OFF, id="spaces-and-case"),
        pytest.param("disk=off", "net", log.INFO, id="default-stays-info"),
    ],
)
def test_filter_parse_gives_level_of_module(text: str, module: str, level: int) -> None:
    assert Filter.parse(text).level(module) == level


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        pytest.param("loud", "'loud' is no level", id="word"),
        pytest.param("", "'' is no level", id="empty"),
        pytest.param("info,", "'' is no level", id="trailing-comma"),
        pytest.param("disk=", "'' is no level", id="no-level"),
        pytest.param("=debug", "no module before '='", id="no-module"),
        pytest.param("a=b=c", "'c' is no level", id="two-equals"),
    ],
)
def test_filter_parse_nonsense_raises(text: str, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        Filter.parse(text)


@given(st.text(max_size=40))
def test_filter_parse_any_text_gives_filter_or_value_error(text: str) -> None:
    with contextlib.suppress(ValueError):
        assert Filter.parse(text).default in range(5)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        pytest.param("plain ünïcode", "plain ünïcode", id="plain"),
        pytest.param("a\nb", r"a\nb", id="newline"),
        pytest.param("\x1b[2J\x07", r"\x1b[2J\x07", id="escape-sequence"),
        pytest.param("\u202egpj.exe", r"\u202egpj.exe", id="bidi"),
        pytest.param("\udcff", r"\udcff", id="surrogate"),
    ],
)
def test_printable_control_characters_are_escaped(text: str, shown: str) -> None:
    assert printable(text) == shown


@given(st.text())
def test_printable_any_text_is_printable(text: str) -> None:
    assert printable(text).isprintable()


def test_printable_long_text_is_cut() -> None:
    assert len(printable("x" * 1_000_000)) < log.MAX_TEXT_BYTES + 40


@pytest.mark.parametrize(
    "character", ["x", "é", "\U0001f600", "\n", "\u202e", "\U000e0001", "\udcff"]
)
def test_printable_bound_is_of_bytes_after_escaping(character: str) -> None:
    for count in (300, 1000, 3840, 3841, 4096, 100_000):
        shown = printable(character * count).encode()
        assert len(shown) <= log.MAX_TEXT_BYTES + 40
        if len(shown) > log.MAX_TEXT_BYTES:
            assert shown.endswith(f"… ({count} characters)".encode())


def test_logger_default_filter_leaves_debug_out(lines: list[Line]) -> None:
    logger = get_logger("disk")
    logger.debug("no")
    logger.info("%d of %d", 1, 2)
    logger.error("100%")
    assert lines == [(log.INFO, "disk", "1 of 2"), (log.ERROR, "disk", "100%")]


def test_logger_set_filter_applies_to_existing_loggers(lines: list[Line]) -> None:
    logger = get_logger("disk")
    logger.info("seen")
    log.set_filter(Filter.parse("debug,disk=off"))
    logger.error("not seen")
    assert [text for _, _, text in lines] == ["seen"]


def test_logger_wrong_format_still_writes_the_line(lines: list[Line]) -> None:
    get_logger("disk").warning("sector %d", "seven")
    assert lines == [(log.WARNING, "disk", "sector %d (str)")]


def test_logger_value_that_cannot_be_told_still_writes_the_line(lines: list[Line]) -> None:
    class Untold:
        def __str__(self) -> str:
            raise RecursionError

    get_logger("disk").warning("sector %s", Untold())
    assert lines == [(log.WARNING, "disk", "sector %s (Untold)")]


def test_logger_guest_text_cannot_add_a_line(lines: list[Line]) -> None:
    get_logger("disk").warning("id %s", "x\n[2030] ERROR fake")
    assert lines == [(log.WARNING, "disk", r"id x\n[2030] ERROR fake")]


@given(st.characters())
def test_printable_writes_characters_as_python_does_without_its_codec(character: str) -> None:
    escaped = character.encode("unicode_escape").decode("ascii")
    assert printable(character) == (character if character.isprintable() else escaped)


def test_logger_exception_writes_one_log_line_for_each_line(lines: list[Line]) -> None:
    get_logger("disk").exception(KeyError("a\x1b"), "stopped")
    assert lines[0] == (log.ERROR, "disk", "stopped")
    assert lines[-1][2] == r"KeyError: 'a\x1b'"


def test_limited_flood_is_cut_and_counted(
    lines: list[Line], monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 100.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    logger = get_logger("disk").limited(burst=2, seconds=10)
    for number in range(5):
        logger.warning("chain %d", number)
    now = 111.0
    logger.warning("later")
    assert [text for _, _, text in lines] == [
        "chain 0",
        "chain 1",
        "later (3 more were not logged)",
    ]


@pytest.mark.parametrize("level", [-5, 0, 99])
def test_emit_level_of_another_process_is_forced_into_range(lines: list[Line], level: int) -> None:
    log.set_filter(Filter(log.DEBUG))
    emit(level, "dev\n", "text\r", LineLimit(9, 1.0))
    assert lines[0][0] in range(log.ERROR, log.DEBUG + 1)
    assert lines[0][1:] == (r"dev\n", r"text\r")


def test_emit_obeys_the_filter_of_this_process(lines: list[Line]) -> None:
    emit(log.DEBUG, "disk", "chatter", LineLimit(9, 1.0))
    assert lines == []


def test_stderr_sink_writes_one_line(capfd: pytest.CaptureFixture[str]) -> None:
    log.stderr_sink(log.WARNING, "disk", "text")
    assert capfd.readouterr().err.endswith("Z WARN  disk] text\n")


def test_emit_counts_the_bytes_that_are_written(
    lines: list[Line], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(time, "monotonic", lambda: 100.0)
    limit = LineLimit(1000, 10.0, max_bytes=20_000)
    for _ in range(1000):
        emit(log.ERROR, "m" * 200, "\U000e0001" * 4096, limit)
    written = sum(len(module) + len(text.encode()) for _, module, text in lines)
    assert 20_000 <= written < 20_000 + 4096
    assert all(len(module) <= 64 for _, module, _ in lines)


def test_report_of_a_bug_is_limited_like_any_line(
    lines: list[Line], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(time, "monotonic", lambda: 100.0)
    logger = get_logger("disk").limited(burst=3, seconds=10)
    for _ in range(5):
        logger.exception(KeyError("a\nb\nc\nd\ne"), "stopped")
    assert len(lines) == 3


def test_emit_beyond_the_limit_is_cut_and_counted(
    lines: list[Line], monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 100.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    limit = LineLimit(2, 10.0)
    for number in range(5):
        emit(log.ERROR, "m", f"line {number}", limit)
    now = 111.0
    emit(log.ERROR, "m", "later", limit)
    assert [text for _, _, text in lines] == [
        "line 0",
        "line 1",
        "later (3 more were not logged)",
    ]
