# SPDX-License-Identifier: BSD-3-Clause
"""The report of a bug, made without files and bounded."""

from __future__ import annotations

import os
import re

import pytest

from sys_util import linux
from sys_util.crash import crash_report


def fail(words: str) -> None:
    raise ZeroDivisionError(words)


def report_of(call: object) -> list[str]:
    assert callable(call)
    try:
        call()
    except Exception as error:  # noqa: BLE001 - any of them is to be reported
        return crash_report(error).splitlines()
    raise AssertionError("it did not fail")


def test_report_names_file_line_and_function_innermost_last() -> None:
    *_, outer, inner, last = report_of(lambda: fail("by nothing"))
    assert re.fullmatch(rf"  {re.escape(__file__)}:\d+ .*<lambda>", outer)
    assert re.fullmatch(rf"  {re.escape(__file__)}:\d+ fail", inner)
    assert last == "ZeroDivisionError: by nothing"


def chain() -> None:
    try:
        fail("first")
    except ZeroDivisionError as error:
        raise RuntimeError("second") from error


def hidden() -> None:
    try:
        fail("first")
    except ZeroDivisionError:
        raise RuntimeError("second") from None


def in_passing() -> None:
    try:
        fail("first")
    except ZeroDivisionError:
        raise RuntimeError("second")  # noqa: B904 - without "from" on purpose


@pytest.mark.parametrize("call", [chain, in_passing])
def test_report_tells_the_cause_first(call: object) -> None:
    lines = report_of(call)
    at = [line for line in lines if not line.startswith("  ")]
    assert at == ["ZeroDivisionError: first", "which led to:", "RuntimeError: second"]


def test_report_leaves_out_a_cause_that_was_suppressed() -> None:
    assert "ZeroDivisionError: first" not in report_of(hidden)


def deep(levels: int) -> None:
    if levels:
        deep(levels - 1)
    fail("deep down")


def test_report_of_a_deep_stack_keeps_the_innermost_frames() -> None:
    lines = report_of(lambda: deep(200))
    assert len(lines) == 25
    assert lines[-2].endswith(" fail")


def test_report_of_a_recursion_is_bounded() -> None:
    def endless() -> None:
        endless()

    lines = report_of(endless)
    assert len(lines) == 25
    assert lines[-1].startswith("RecursionError: ")


def causes(levels: int) -> BaseException:
    error: BaseException = ZeroDivisionError("level 0")
    for level in range(1, levels):
        later = RuntimeError(f"level {level}")
        later.__cause__ = error
        error = later
    return error


def test_report_of_a_long_chain_of_causes_is_bounded() -> None:
    report = crash_report(causes(5000))
    assert report.splitlines()[-1] == "RuntimeError: level 4999"
    assert len(report) < 10_000


def test_report_of_causes_in_a_circle_ends() -> None:
    first, second = RuntimeError("first"), RuntimeError("second")
    first.__cause__, second.__cause__ = second, first
    assert crash_report(first).splitlines()[-1] == "RuntimeError: first"


class Unprintable(Exception):  # noqa: N818 - it is its name
    def __str__(self) -> str:
        raise ValueError("no words")


def test_report_of_an_error_without_words_has_its_name() -> None:
    assert crash_report(Unprintable()).splitlines()[-1].startswith("Unprintable: ")


def test_report_opens_no_file() -> None:
    """Allow no new descriptor, as in a jail."""
    read_end, write_end = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            linux.close_all_fds_except({write_end})
            import resource

            resource.setrlimit(resource.RLIMIT_NOFILE, (0, 0))
            os.write(write_end, "\n".join(report_of(lambda: fail("jailed"))).encode())
        finally:
            os._exit(0)
    os.close(write_end)
    with open(read_end) as pipe:
        assert pipe.read().endswith("ZeroDivisionError: jailed")
    os.waitpid(pid, 0)
