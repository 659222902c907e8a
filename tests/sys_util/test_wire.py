# SPDX-License-Identifier: BSD-3-Clause
"""Messages: what is sent arrives, and everything else is refused with a reason."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sys_util import wire
from sys_util.errors import ProtocolError


@dataclass(frozen=True, slots=True)
class Sample:
    TYPE: ClassVar[int] = 7
    FIELDS: ClassVar[tuple[wire.Check, ...]] = (
        wire.U16,
        wire.text(8),
        wire.sequence(wire.record(lambda a, b: (a, b), wire.U32, wire.boolean), 2),
        wire.optional(wire.blob(4)),
    )
    number: int
    name: str
    pairs: tuple[object, ...]
    data: bytes | None


CODEC = wire.Codec((Sample,))
GOOD: list[object] = [7, 1, "name", [[2, True]], b"data"]


class Other(Sample):
    """Another message with the same number."""


def test_two_messages_with_one_number_are_refused() -> None:
    message = Sample(1, "", (), None)
    assert wire.Codec((Sample, Sample)).decode(wire.encode(message)) == message
    with pytest.raises(ValueError, match="Sample and Other both have the number 7"):
        wire.Codec((Sample, Other))


def test_message_round_trips() -> None:
    message = Sample(1, "name", ((2, True),), None)
    assert CODEC.decode(wire.encode(message)) == message


@pytest.mark.parametrize(
    ("payload", "reason"),
    [
        pytest.param(b"", "not msgpack", id="empty"),
        pytest.param(b"\xc1", "not msgpack", id="never-used-byte"),
        pytest.param(b"\x91", "not msgpack", id="half"),
        pytest.param(msgpack.packb(GOOD) + b"\x00", "not msgpack", id="trailing"),
        pytest.param(b"\x91" * 2000 + b"\x00", "more than 8 deep", id="deep"),
        pytest.param(msgpack.packb({"7": 1}), "not an array", id="map"),
        pytest.param(msgpack.packb([]), "not an array", id="no-type"),
        pytest.param(msgpack.packb(["7"]), "not an array", id="text-type"),
        pytest.param(msgpack.packb([True, 1]), "begins with", id="boolean-type"),
        pytest.param(msgpack.packb([8]), "unknown type 8", id="unknown"),
        pytest.param(msgpack.packb(GOOD[:-1]), "Sample with 3 fields", id="field-missing"),
        pytest.param(msgpack.packb([*GOOD, 1]), "Sample with 5 fields", id="field-more"),
        pytest.param(msgpack.packb([7, True, *GOOD[2:]]), "whole number", id="boolean-number"),
        pytest.param(msgpack.packb([7, 1.0, *GOOD[2:]]), "whole number", id="float"),
        pytest.param(msgpack.packb([7, -1, *GOOD[2:]]), "whole number", id="negative"),
        pytest.param(msgpack.packb([7, 65536, *GOOD[2:]]), "whole number", id="large"),
        pytest.param(msgpack.packb([7, 1, "ninechars", *GOOD[3:]]), "8 characters", id="text-long"),
        pytest.param(msgpack.packb([7, 1, b"name", *GOOD[3:]]), "not a string", id="text-bytes"),
        pytest.param(msgpack.packb([7, 1, "n", [[2]], b""]), "array of 2", id="record-short"),
        pytest.param(msgpack.packb([7, 1, "n", [[2, 1]], b""]), "boolean", id="record-type"),
        pytest.param(msgpack.packb([7, 1, "n", [[2, True]] * 3, b""]), "up to 2", id="too-many"),
        pytest.param(msgpack.packb([7, 1, "n", [], b"12345"]), "byte string", id="blob-long"),
        pytest.param(b"\x95\x07\x01\xa1\xff\x90\xc0", "not msgpack", id="not-utf-8"),
        pytest.param(bytes(wire.MAX_MESSAGE_BYTES + 1), "message of", id="oversized"),
    ],
)
def test_decode_hostile_payload_is_refused(payload: bytes, reason: str) -> None:
    with pytest.raises(ProtocolError, match=reason):
        CODEC.decode(payload)


@given(st.binary(max_size=64))
def test_decode_of_any_bytes_never_raises_anything_else(payload: bytes) -> None:
    try:
        message = CODEC.decode(payload)
    except ProtocolError:
        return
    assert isinstance(message, Sample)


@given(
    st.lists(
        st.recursive(
            st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.text() | st.binary(),
            lambda inner: st.lists(inner, max_size=4),
        ),
        max_size=6,
    )
)
def test_decode_of_any_array_never_raises_anything_else(fields: list[object]) -> None:
    try:
        message = CODEC.decode(msgpack.packb([7, *fields]))
    except ProtocolError:
        return
    assert isinstance(message, Sample)


@dataclass(frozen=True, slots=True)
class Outer:
    TYPE: ClassVar[int] = 9
    FIELDS: ClassVar[tuple[wire.Check, ...]] = (wire.U16, wire.nested(CODEC))
    number: int
    inner: wire.Message


OUTER = wire.Codec((Outer,))


def test_message_in_a_message_round_trips() -> None:
    message = Outer(1, Sample(1, "name", ((2, True),), None))
    assert OUTER.decode(wire.encode(message)) == message


@pytest.mark.parametrize(
    ("inner", "reason"),
    [
        pytest.param(None, "not an array that begins with its type", id="nil"),
        pytest.param([], "not an array that begins with its type", id="empty"),
        pytest.param([9, 1, []], "message of unknown type 9", id="itself"),
        pytest.param(GOOD[:-1], "Sample with 3 fields", id="short"),
        pytest.param([*GOOD[:2], 5, *GOOD[3:]], "not a string", id="field"),
    ],
)
def test_message_in_a_message_is_checked_as_strictly(inner: object, reason: str) -> None:
    with pytest.raises(ProtocolError, match=reason):
        OUTER.decode(msgpack.packb([9, 1, inner]))
