# SPDX-License-Identifier: BSD-3-Clause
"""The key=value grammar, valid and hostile."""

from __future__ import annotations

import contextlib
import shlex

import pytest
from hypothesis import given
from hypothesis import strategies as st

from crosvm_py.cli.grammar import keyvalue
from crosvm_py.cli.grammar.keyvalue import parse
from sys_util.errors import UsageError

PATH = keyvalue.path("path", "a file").needed()
RO = keyvalue.flag("ro", "read-only")
SPARSE = keyvalue.flag("sparse", "discard", default=True)
SIZE = keyvalue.integer("block-size", "bytes", 512)
ID = keyvalue.string("id", "serial number").also("serial-number")
MODE = keyvalue.choice("mode", "how", ("pivot-root", "none"), "none")
SIZES = keyvalue.list_of(keyvalue.integer("sizes", "some", 0))
GRID = keyvalue.list_of(keyvalue.list_of(keyvalue.string("grid", "of words")))
FIELDS = (PATH, RO, SPARSE, SIZE, ID, MODE, SIZES, GRID)


@pytest.mark.parametrize(
    ("text", "field", "value"),
    [
        pytest.param("disk.img", PATH, "disk.img", id="first-key-left-out"),
        pytest.param("path=disk.img", PATH, "disk.img", id="first-key"),
        pytest.param("ro,path=disk.img", PATH, "disk.img", id="any-order"),
        pytest.param("path=a=b", PATH, "a=b", id="equals-in-value"),
        pytest.param("/dev/disk-1.img,", PATH, "/dev/disk-1.img", id="trailing-comma"),
        pytest.param("ro/disk", PATH, "ro/disk", id="path-that-begins-with-a-key"),
        pytest.param('"a, [b]=c"', PATH, "a, [b]=c", id="quoted-first"),
        pytest.param(r'path="say \"\\\"",ro', PATH, 'say "\\"', id="escapes"),
        pytest.param(r"path='\"'", PATH, r"\"", id="single-quotes-escape-nothing"),
        pytest.param("path=größe 1", PATH, "größe 1", id="unicode-and-space"),
        pytest.param("x,ro", RO, True, id="bare"),
        pytest.param("x,ro=true", RO, True, id="true"),
        pytest.param("x,ro=false", RO, False, id="false"),
        pytest.param("x", RO, False, id="default-false"),
        pytest.param("x", SPARSE, True, id="default-true"),
        pytest.param("x,sparse=false", SPARSE, False, id="default-overridden"),
        pytest.param("x,block-size=4096", SIZE, 4096, id="number"),
        pytest.param("x,block_size=0x1000", SIZE, 4096, id="underscore-and-hex"),
        pytest.param("x,block-size=0o10", SIZE, 8, id="octal"),
        pytest.param("x,block-size=0b11", SIZE, 3, id="binary"),
        pytest.param("x,id=''", ID, "", id="empty-string-in-quotes"),
        pytest.param("x", ID, None, id="no-string"),
        pytest.param("x,serial_number=7", ID, "7", id="alias"),
        pytest.param("x,mode=pivot_root", MODE, "pivot-root", id="choice-underscore"),
        pytest.param("x,sizes=[1,0x10]", SIZES, (1, 16), id="list"),
        pytest.param("x,sizes=[]", SIZES, (), id="empty-list"),
        pytest.param("x,sizes=[1],ro", SIZES, (1,), id="after-list"),
        pytest.param("x,grid=[[a,b],[],['c,]']]", GRID, (("a", "b"), (), ("c,]",)), id="nested"),
    ],
)
def test_parse_valid_text_gives_value(
    text: str, field: keyvalue.Field[object], value: object
) -> None:
    assert parse("--block", text, FIELDS)[field] == value


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        pytest.param("", r"--block: path: a value is missing", id="empty"),
        pytest.param("ro", r"--block: path=PATH is missing \(in 'ro'\)", id="needed"),
        pytest.param("path=", r"--block: path: a value is missing", id="no-value"),
        pytest.param("path=''", r"path=\"''\": a file name is missing", id="empty-path"),
        pytest.param("x,foo=1", r"unknown key 'foo' \(known: path, ro, sparse,", id="unknown"),
        pytest.param("x,foo", r"unknown key 'foo'", id="unknown-bare"),
        pytest.param("foo=x", r"unknown key 'foo'", id="unknown-first"),
        pytest.param("x,RO", r"unknown key 'RO', did you mean ro\?", id="case"),
        pytest.param("x,blok_size=1", r"'blok_size', did you mean block-size\?", id="near"),
        pytest.param(
            "x,mode=pivot", r"pivot-root, none, did you mean pivot-root\?", id="choice-near"
        ),
        pytest.param("x,ro,ro", r"ro: given twice", id="twice-bare"),
        pytest.param("x,path=y", r"path='y': given twice", id="twice-first"),
        pytest.param("x,block-size=1,block_size=1", r"block-size='1': given twice", id="alike"),
        pytest.param("x,id=1,serial-number=2", r"id='2': given twice", id="twice-alias"),
        pytest.param("x,id", r"id needs a value \(id=TEXT\)", id="bare-string"),
        pytest.param("x,,ro", r"no key at ',ro'", id="empty-key"),
        pytest.param("x,=1", r"no key at '=1'", id="only-equals"),
        pytest.param("x,-ro", r"no key at '-ro'", id="dash-first"),
        pytest.param("x,ro =1", r"no key at 'ro =1'", id="space-in-key"),
        pytest.param("x,ro=yes", r"ro='yes': must be true or false", id="bool"),
        pytest.param("x,ro=1", r"ro='1': must be true or false", id="bool-number"),
        pytest.param("x,ro=", r"ro: a value is missing", id="bool-empty"),
        pytest.param("x,block-size=-1", r"block-size='-1': not a number", id="negative"),
        pytest.param("x,block-size=1.5", r"block-size='1.5': not a number", id="fraction"),
        pytest.param("x,block-size=1_0", r"block-size='1_0': not a number", id="underscore"),
        pytest.param("x,block-size=٣", r"block-size='٣': not a number", id="other-digits"),
        pytest.param("x,block-size= 1", r"block-size=' 1': not a number", id="space"),
        pytest.param("x,block-size=0x", r"block-size='0x': not a number", id="only-prefix"),
        pytest.param("x,block-size=0xg", r"block-size='0xg': not a number", id="bad-hex"),
        pytest.param("x,block-size=" + "9" * 30, r"above the limit of 18446744073", id="large"),
        pytest.param("x,block-size=" + "9" * 9000, r"not a number", id="very-large"),
        pytest.param("x,mode=no", r"mode='no': must be one of pivot-root, none", id="choice"),
        pytest.param('x,id="a', r'no closing "', id="open-quote"),
        pytest.param("x,id='a", r"no closing '", id="open-single-quote"),
        pytest.param('x,id="a\\', r'only \\" and', id="open-escape"),
        pytest.param(r'x,id="\n"', r'only \\" and', id="other-escape"),
        pytest.param('x,id="a"b', r'text after the closing "', id="after-quote"),
        pytest.param('x,id=a"b"', r'" must stand inside quotes', id="quote-in-word"),
        pytest.param("x,id=a[b", r"\[ must stand inside quotes", id="bracket-in-word"),
        pytest.param("x,sizes=1", r"sizes='1': a list needs \[ and \]", id="no-list"),
        pytest.param("x,sizes=[1", r"no closing \]", id="open-list"),
        pytest.param("x,sizes=[1,", r"a value is missing", id="open-list-comma"),
        pytest.param("x,sizes=[1,,2]", r"a value is missing", id="empty-item"),
        pytest.param("x,sizes=[1]2", r"'2' after the value", id="after-list"),
        pytest.param("x,sizes=[[1]]", r"a value is missing|inside quotes", id="too-deep"),
        pytest.param("x]", r"'\]' after the value", id="stray-bracket"),
    ],
)
def test_parse_hostile_text_raises(text: str, reason: str) -> None:
    with pytest.raises(UsageError, match=rf"^--block: .*{reason}|^{reason}"):
        parse("--block", text, FIELDS)


@pytest.mark.parametrize(
    ("text", "written"),
    [
        pytest.param("a,b.img", 'path="a,b.img"', id="word"),
        pytest.param("path=/srv/a,b.img,ro", 'path="/srv/a,b.img"', id="more-behind"),
        pytest.param("a, 2026.img", 'path="a, 2026.img"', id="space"),
        pytest.param("ro,path=a,=b", 'path="a,=b"', id="equals"),
        pytest.param("a,b=c.img", 'path="a,b=c.img"', id="like-a-key"),
        pytest.param("a\\b,c.img", 'path="a\\\\b,c.img"', id="backslash"),
        pytest.param("x,id=1,2", 'id="1,2"', id="other-text"),
        pytest.param("a,b'c.img", 'path="a,b\'c.img"', id="single-quote"),
    ],
)
def test_parse_text_with_a_comma_tells_how_to_quote_it(text: str, written: str) -> None:
    with pytest.raises(UsageError, match="needs quotes: --block") as caught:
        parse("--block", text, FIELDS)
    _, _, hint = str(caught.value).partition("; a value with a comma needs quotes: ")
    option, quoted = shlex.split(hint)
    assert (option, quoted) == ("--block", written)
    values = parse("--block", f"ro,{quoted},path=x" if "id=" in quoted else quoted, FIELDS)
    assert values[PATH]


@pytest.mark.parametrize("text", ["x,ro,foo", "'a,b',foo", "x,RO", "x,id", "x,block-size=1,foo"])
def test_parse_other_faults_do_not_speak_of_quotes(text: str) -> None:
    with pytest.raises(UsageError, match=r"^(?!.*quotes)"):
        parse("--block", text, FIELDS)


@given(st.text(alphabet="path=ro,sizegrd[]\"'\\-_0x1 \n\x00é", max_size=60))
def test_parse_any_text_gives_values_or_usage_error(text: str) -> None:
    with contextlib.suppress(UsageError):
        assert isinstance(parse("--block", text, FIELDS)[PATH], str)


@given(st.text(min_size=1).filter(lambda text: "'" not in text))
def test_parse_any_quoted_string_comes_back(text: str) -> None:
    assert parse("--block", f"x,id='{text}'", FIELDS)[ID] == text


def test_values_contains_only_what_was_given() -> None:
    values = parse("--block", "x,ro", FIELDS)
    assert RO in values
    assert SPARSE not in values
