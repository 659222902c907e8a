# SPDX-License-Identifier: BSD-3-Clause
from __future__ import annotations

import json
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from crosvm_py.vm_config.errors import SchemaError
from crosvm_py.vm_config.json_text import MAX_BYTES, MAX_DEPTH, MAX_VALUES, parse

SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(1 << 63), (1 << 64) - 1),
    st.floats(allow_nan=False, allow_infinity=False),
    st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"])),
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner) | st.dictionaries(st.text("abc[]{}\\\"'é"), inner),
    max_leaves=30,
)


def as_parsed(digits: str) -> int | float:
    fits = -(1 << 63) <= int(digits) < 1 << 64
    return int(digits) if fits else float(digits)


@settings(deadline=None)
@given(VALUES, st.booleans())
def test_parse_reads_what_python_reads(value: object, ascii_only: bool) -> None:
    text = json.dumps(value, ensure_ascii=ascii_only)
    assert parse(text.encode()) == json.loads(text)


@settings(deadline=None)
@given(st.text('[]{},:"\\ \n0123456789.eE+-truefalsnl/bd8cé', max_size=60))
def test_parse_refuses_what_python_refuses_and_raises_nothing_else(text: str) -> None:
    try:
        found = parse(text.encode())
    except SchemaError:
        return
    assert found == json.loads(text, parse_int=as_parsed)


@settings(deadline=None)
@given(st.binary(max_size=80))
def test_parse_of_any_bytes_raises_nothing_else(text: bytes) -> None:
    with suppress(SchemaError):
        parse(text)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        pytest.param(b"", "not JSON: expecting value at line 1 column 1", id="empty"),
        pytest.param(b"{}\n x", "extra data at line 2 column 2", id="trailing"),
        pytest.param(b'{"a":1,}', "line 1 column 8", id="comma"),
        pytest.param(b'{"a":01}', "line 1 column 7", id="leading zero"),
        pytest.param(b'{"a":+1}', "expecting value", id="plus"),
        pytest.param(b"{'a':1}", "expecting property name", id="apostrophes"),
        pytest.param(b'{"a":NaN}', "NaN is not JSON", id="NaN"),
        pytest.param(b"-Infinity", "-Infinity is not JSON", id="Infinity"),
        pytest.param(b"[1e999]", "'1e999' is a number out of range", id="range"),
        pytest.param(b"9" * 5000, r"\(5000 long\) is a number out of range", id="digits"),
        pytest.param(b'{"a":1,"a":1}', "^a: the key is there twice", id="twice"),
        pytest.param(b'[{"b":[{},{"a":0,"b":0,"a":1}]}]', r"^\[0\].b\[1\].a: ", id="twice inside"),
        pytest.param(b'{"":1,"":1}', "^'': the key is there twice", id="twice without name"),
        pytest.param(b'{"\\u0061":1,"a":1}', "^a: the key", id="twice by escape"),
        pytest.param(b'{"a":"\xff"}', "byte 6 is not UTF-8", id="UTF-8"),
        pytest.param(b'"\xed\xa0\x80"', "byte 1 is not UTF-8", id="surrogate in UTF-8"),
        pytest.param(b"\xef\xbb\xbf{}", "not JSON", id="mark of order"),
        pytest.param("{}".encode("utf-16"), "not UTF-8", id="UTF-16"),
        pytest.param(b'{"a":["\\ud800"]}', r"^a\[0\]: half a surrogate pair", id="surrogate"),
        pytest.param(b'{"\\udc00":1}', "half a surrogate pair", id="surrogate in a key"),
        pytest.param(b'{"a":"x\\u0000"}', "^a: a zero byte", id="zero"),
        pytest.param(b'"\0"', "invalid control character", id="raw zero"),
        pytest.param(b'"\n"', "invalid control character", id="raw line feed"),
        pytest.param(b'"abc', "unterminated string", id="no end"),
        pytest.param(b"[" * 129 + b"]" * 129, "more than 128 deep", id="depth 129"),
        pytest.param(b"[" * 1010 + b"]" * 1010, "more than 128 deep", id="depth 1010"),
        pytest.param(b'{"a":' * 129 + b"1" + b"}" * 129, "more than 128 deep", id="depth of {"),
        pytest.param(b"[" * MAX_BYTES, "more than", id="only brackets"),
        pytest.param(b'"' + b'\\"[' * 1_000_000, "unterminated string", id="escaped quotes"),
        pytest.param(b"[" + b"0," * MAX_VALUES + b"0]", "more than 262144 values", id="values"),
        pytest.param(b" " * (MAX_BYTES + 1), "4194305 bytes are more", id="4 MiB + 1"),
    ],
)
def test_parse_refuses(text: bytes, reason: str) -> None:
    with pytest.raises(SchemaError, match=reason):
        parse(text)


@pytest.mark.parametrize(
    "text",
    [
        pytest.param(b"[" * MAX_DEPTH + b"]" * MAX_DEPTH, id="depth 128"),
        pytest.param(b"[" + b"[]," * 500 + b"[]]", id="many beside each other"),
        pytest.param(json.dumps("[" * 1000).encode(), id="brackets in a string"),
        pytest.param(json.dumps(['\\"[{' * 100, '"[{' * 100]).encode(), id="quoted quotes"),
        pytest.param(json.dumps("," * (MAX_VALUES + 1)).encode(), id="commas in a string"),
        pytest.param(b"{}" + b" " * (MAX_BYTES - 2), id="4 MiB"),
        pytest.param(b'"\\ud83d\\ude00"', id="surrogate pair"),
        pytest.param(b"[-0,0.0,1e5,-9223372036854775808,18446744073709551615]", id="numbers"),
    ],
)
def test_parse_accepts(text: bytes) -> None:
    assert parse(text) == json.loads(text)


def test_parse_makes_a_float_of_what_64_bits_do_not_hold() -> None:
    found: Any = parse(b"[18446744073709551616, -9223372036854775809]")
    assert [type(number) for number in found] == [float, float]
