# SPDX-License-Identifier: BSD-3-Clause
"""Numbers and sizes on the command line."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from crosvm_py.cli.grammar.scanner import parse_number, parse_size


@pytest.mark.parametrize(
    ("text", "size_bytes"),
    [
        ("512", 512 << 20),
        ("0x200", 512 << 20),
        ("512m", 512 << 20),
        ("1G", 1 << 30),
        ("2t", 2 << 40),
        ("4096k", 4 << 20),
        ("0x1e", 30 << 20),
    ],
)
def test_parse_size_knows_suffixes(text: str, size_bytes: int) -> None:
    assert parse_size(text, 1 << 20) == size_bytes


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("16e", "more bytes than 64 bits can count"),
        ("g", "not a number .a size may have k, m, g or t behind its"),
        ("", "not a number .a size"),
        ("1x", "not a number .a size"),
        ("1gg", "not a number .a size"),
        ("-1g", "not a number .a size"),
        ("99999999999999999999999", "above the limit"),
    ],
)
def test_parse_size_nonsense_raises(text: str, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        parse_size(text, 1 << 20)


@given(st.text(max_size=30))
def test_parse_number_any_text_gives_64_bits_or_value_error(text: str) -> None:
    with contextlib.suppress(ValueError):
        assert 0 <= parse_number(text) < 2**64
