# SPDX-License-Identifier: BSD-3-Clause
"""Values that strangers send: each of them can be refused and described."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sys_util import stranger
from sys_util.errors import ChannelClosed, ConfigError, HostError, ProtocolError
from sys_util.log import get_logger
from sys_util.stranger import MAX_DEPTH, brief, judged, unpack, unpack_fields
from tests.fuzz.unforeseen import unforeseen_errors_are_finds
from tests.support.strangers import DEEPEST, VALUES, deep

if TYPE_CHECKING:
    from collections.abc import Callable


class Rude:
    """A value whose ``__repr__`` raises an error."""

    def __repr__(self) -> str:
        raise RuntimeError

    __str__ = __repr__


def nested(depth: int) -> object:
    value: object = None
    for _ in range(depth):
        value = [value]
    return value


@pytest.mark.parametrize(
    ("value", "words"),
    [
        pytest.param(None, "None", id="none"),
        pytest.param(True, "True", id="boolean"),
        pytest.param(-5, "-5", id="number"),
        pytest.param(1 << 200, "a number of 201 bits", id="long number"),
        pytest.param(10**5000, "a number of 16610 bits", id="number without a text"),
        pytest.param(float("nan"), "nan", id="nan"),
        pytest.param("x\n", r"'x\n'", id="text"),
        pytest.param("\ud800", r"'\ud800'", id="surrogate"),
        pytest.param("x" * 50, f"'{'x' * 40}'… (50 long)", id="long text"),
        pytest.param(b"\xff", r"b'\xff'", id="bytes"),
        pytest.param([1, 2], "an array of 2", id="array"),
        pytest.param((1,), "an array of 1", id="tuple"),
        pytest.param({"a": 1}, "a map of 1", id="map"),
        pytest.param(nested(sys.getrecursionlimit() * 2), "an array of 1", id="deep"),
        pytest.param(Rude(), "a value of type Rude", id="rude"),
    ],
)
def test_brief_describes_any_value(value: object, words: str) -> None:
    assert brief(value) == words


@given(st.text() | st.binary() | st.integers() | st.floats())
def test_brief_of_anything_is_short(value: object) -> None:
    assert len(brief(value)) <= 40 * 10 + 30


@pytest.mark.parametrize("head", [b"\x91", b"\x81\xa0", b"\xdc\x00\x01", b"\xdd\x00\x00\x00\x01"])
@pytest.mark.parametrize("before", [b"", b"\x92" + msgpack.packb(bytes(range(256)) * 20)])
def test_unpack_at_every_depth_gives_a_value_or_a_refusal(head: bytes, before: bytes) -> None:
    levels = bool(before)
    for depth in range(DEEPEST + 1):
        data = before + deep(depth, head)
        if depth + levels <= MAX_DEPTH:
            unpack(data)
            continue
        with pytest.raises(ProtocolError, match="more than 8 deep"):
            unpack(data)


@pytest.mark.parametrize("data", VALUES.values(), ids=VALUES)
def test_unpack_of_any_value_gives_it_or_a_refusal(data: bytes) -> None:
    try:
        value = unpack(data)
    except ProtocolError:
        return
    assert brief(value)


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats(allow_nan=False)
        | st.text(max_size=300) | st.binary(max_size=300),
        lambda inner: st.lists(inner, max_size=40) | st.dictionaries(st.text(), inner, max_size=20),
        max_leaves=60,
    )
)  # fmt: skip
def test_unpack_agrees_with_msgpack_on_what_is_not_too_deep(value: object) -> None:
    data = msgpack.packb(value)
    if depth_of(value) <= MAX_DEPTH:
        assert unpack(data) == value
    else:
        with pytest.raises(ProtocolError, match="deep"):
            unpack(data)


def depth_of(value: object) -> int:
    if isinstance(value, dict):
        return depth_of(list(value.values()))
    return 1 + max(map(depth_of, value), default=0) if isinstance(value, list) else 0


@given(st.binary(max_size=400))
def test_unpack_of_any_bytes_raises_nothing_else(data: bytes) -> None:
    try:
        unpack(data)
    except ProtocolError:
        return


def test_unpack_takes_bounded_memory_and_time_for_a_claim() -> None:
    """Each array claims all that is left; msgpack would make room for it, a thousand times."""
    with pytest.raises(ProtocolError, match="deep"):
        unpack(b"\xdc\xfd\xe8" * 1020 + bytes(62_000))


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        pytest.param(b"", "not msgpack", id="nothing"),
        pytest.param(b"\xc1", "not msgpack", id="never used"),
        pytest.param(b"\x80\x80", "not msgpack", id="two"),
        pytest.param(b"\x90", "without names", id="array"),
        pytest.param(b"\x81\xc4\x01a\x01", "without names", id="name of bytes"),
        pytest.param(b"\x81\xa1a" + deep(8), "8 deep", id="deep"),
        pytest.param(b"\x81\xa1a\xd4\x05\x00", "extension", id="extension"),
    ],
)
def test_unpack_fields_refuses_with_a_reason(data: bytes, reason: str) -> None:
    with pytest.raises(ProtocolError, match=reason):
        unpack_fields(data)


def fail(error: BaseException) -> Callable[[], None]:
    def act() -> None:
        raise error

    return act


@pytest.mark.parametrize(
    "error",
    [HostError("read", "x"), ConfigError("x"), ProtocolError("x"), ChannelClosed(), SystemExit()],
    ids=lambda error: type(error).__name__,
)
def test_judged_lets_foreseen_errors_pass(error: BaseException, lines: list[str]) -> None:
    with pytest.raises(type(error)) as caught:
        judged("its Word", fail(error))
    assert caught.value is error
    assert lines == []


@pytest.mark.parametrize(
    "error",
    [KeyError(1), RecursionError(), MemoryError(), OSError(9, "bad"), UnicodeError("x")],
    ids=lambda error: type(error).__name__,
)
def test_judged_blames_the_stranger_and_tells_where_the_bug_is(
    error: Exception, lines: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stranger, "_log", get_logger("x").limited())
    with pytest.raises(ProtocolError, match=f"^its Word: {type(error).__name__}$"):
        judged("its Word", fail(error))
    assert lines[0] == "its Word could not be used"
    assert any("test_stranger.py" in line for line in lines)


def test_unforeseen_errors_are_finds_of_a_fuzzer() -> None:
    with (
        unforeseen_errors_are_finds(),
        pytest.raises(AssertionError, match="its Word: KeyError"),
    ):
        judged("its Word", fail(KeyError(1)))
