# SPDX-License-Identifier: BSD-3-Clause
"""The table-driven parser: spellings, order, repetition, and what it refuses."""

from __future__ import annotations

import pytest

from crosvm_py.cli.grammar.options import Arguments, Option, Positional, parse, switch, text_option
from sys_util.errors import UsageError

PARAMS = text_option("-p --params", "TEXT", "parameters", repeatable=True)
DISK = text_option("-d --disk", "PATH", "disk", repeatable=True)
RWDISK = text_option("--rw-disk", "PATH", "disk", repeatable=True)
NAME = text_option("--name", "NAME", "name")
QUIET = switch("-q --quiet", "less")
OPTIONS: tuple[Option[object], ...] = (PARAMS, DISK, RWDISK, NAME, QUIET)
FILES = (Positional("FILE", "file", 1, 2),)
MORE = Positional("MORE", "words of another command", behind_dashes=True)


def read(*words: str) -> Arguments:
    return parse(words, OPTIONS, FILES)


@pytest.mark.parametrize(
    "words",
    [
        pytest.param(["-p", "a b", "f"], id="short"),
        pytest.param(["-p=a b", "f"], id="short-equals"),
        pytest.param(["--params", "a b", "f"], id="long"),
        pytest.param(["--params=a b", "f"], id="long-equals"),
        pytest.param(["f", "-p", "a b"], id="after-the-argument"),
        pytest.param(["-p", "a b", "--", "f"], id="double-dash"),
    ],
)
def test_parse_spellings_of_an_option(words: list[str]) -> None:
    arguments = read(*words)
    assert list(arguments.every(PARAMS)) == ["a b"]
    assert arguments.positional == ["f"]


def test_parse_keeps_the_order_across_options() -> None:
    arguments = read("-d", "1", "--rw-disk", "2", "f", "--disk=3", "--rw_disk", "4", "-p", "x")
    assert list(arguments.every(RWDISK, DISK)) == ["1", "2", "3", "4"]


@pytest.mark.parametrize("value", ["-1", "--name", "", "--", "a=b=c"])
def test_parse_value_is_the_next_word_whatever_it_is(value: str) -> None:
    assert list(read("f", "-p", value).every(PARAMS)) == [value]


def test_parse_absent_option_is_none() -> None:
    arguments = read("f")
    assert arguments.get(NAME) is None
    assert not arguments.has(QUIET)


@pytest.mark.parametrize("words", [["-h"], ["--help"], ["-q", "--help"], ["f", "f", "f", "-h"]])
def test_parse_help_stops_everything_else(words: list[str]) -> None:
    assert read(*words).help_wanted


def test_parse_help_as_a_value_is_a_value() -> None:
    assert not read("f", "-p", "--help").help_wanted


def test_parse_leaves_the_words_of_another_command_alone() -> None:
    arguments = parse(["a", "-q", "--", "b", "--", "--help"], OPTIONS, (*FILES, MORE))
    assert (arguments.positional, arguments.rest) == (["a"], ["b", "--", "--help"])
    assert arguments.has(QUIET)
    assert not arguments.help_wanted


def test_parse_wants_the_words_of_another_command() -> None:
    with pytest.raises(UsageError, match="-- MORE is missing"):
        parse(["a"], OPTIONS, (*FILES, MORE))


DEVICE = Positional("DEVICE", "a device")
LIMITS = Positional("LIMITS", "limits", 0)
SOCKETS = Positional("SOCKET", "sockets", 1, 3)


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        ([], "DEVICE is missing"),
        (["d"], "SOCKET is missing"),
        (["", "s"], "DEVICE: the value is empty"),
        (["d", ""], "SOCKET: the value is empty"),
        (["d", "", "s"], "LIMITS: the value is empty"),
        (["d", "l", "s", ""], "SOCKET: the value is empty"),
        (["d", "l", "1", "2", "3", "4"], "unexpected argument '4'"),
    ],
)
def test_parse_names_the_argument_that_is_wrong(words: list[str], reason: str) -> None:
    with pytest.raises(UsageError, match=reason):
        parse(words, OPTIONS, (DEVICE, LIMITS, SOCKETS))


def test_parse_stop_at_argument_leaves_the_rest() -> None:
    arguments = parse(["-q", "run", "-x", "--help"], OPTIONS, stop_at_argument=True)
    assert arguments.rest == ["run", "-x", "--help"]
    assert arguments.has(QUIET)


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        pytest.param(["--frob", "f"], "unknown option --frob", id="unknown"),
        pytest.param(["--nam", "x", "f"], "unknown option --nam, did you mean --name", id="prefix"),
        pytest.param(["--frob=1", "f"], "unknown option --frob$", id="unknown-with-value"),
        pytest.param(["-x", "f"], "unknown option -x", id="unknown-short"),
        pytest.param(["-qd", "f"], "unknown option -qd", id="joined-shorts"),
        pytest.param(
            ["-dx", "f"],
            "unknown option -dx; the value of -d is a word of its own: -d x",
            id="joined",
        ),
        pytest.param(["---", "f"], "unknown option ---", id="dashes"),
        pytest.param(["f", "--name"], r"--name: a value is missing \(NAME\)", id="no-value"),
        pytest.param(["f", "--name="], "--name: the value is empty", id="empty-value"),
        pytest.param(["--name=a", "--name=b", "f"], "--name: given twice", id="twice"),
        pytest.param(["-q", "--quiet", "f"], "--quiet: given twice", id="switch-twice"),
        pytest.param(["-q=1", "f"], "--quiet: takes no value, got '1'", id="switch-value"),
        pytest.param([], "FILE is missing", id="no-argument"),
        pytest.param(["a", "b", "c"], "unexpected argument 'c'", id="too-many"),
        pytest.param([""], "FILE: the value is empty", id="empty-argument"),
        pytest.param(["--", "--name", "a", "b"], "unexpected argument 'b'", id="after-dashes"),
    ],
)
def test_parse_hostile_command_line_raises(words: list[str], reason: str) -> None:
    with pytest.raises(UsageError, match=reason):
        read(*words)
