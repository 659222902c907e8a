# SPDX-License-Identifier: BSD-3-Clause
"""Our enum does what that of Python does, as far as we use it."""

from __future__ import annotations

import enum
from types import ModuleType, new_class
from typing import Any

import pytest

from sys_util import enum as ours


@pytest.fixture(params=[enum, ours], ids=["python", "ours"])
def module(request: pytest.FixtureRequest) -> ModuleType:
    found: ModuleType = request.param
    return found


def make(base: type, **body: object) -> object:
    """Return a class with this body."""

    def fill(namespace: dict[str, object]) -> None:
        for name, value in body.items():
            namespace[name] = value

    return new_class("Some", (base,), {}, fill)


def test_members_of_enum(module: ModuleType) -> None:
    some: Any = make(module.Enum, __doc__="!", OPEN="o", GONE="g", word=lambda self: self.value)
    assert (some.OPEN.name, some.OPEN.value, some.GONE.word()) == ("OPEN", "o", "g")
    assert some("g") is some.GONE
    assert ([*some], len(some)) == ([some.OPEN, some.GONE], 2)
    assert some.OPEN not in (some.GONE, "o")
    assert isinstance(some.OPEN, some)
    assert {some.OPEN: 1}[some("o")] == 1
    with pytest.raises(ValueError, match=r"^'ajar' is not a valid .*Some$"):
        some("ajar")


def test_members_of_int_enum(module: ModuleType) -> None:
    some: Any = make(module.IntEnum, SEND=1, STOP=5)
    assert some.STOP == 5
    assert 5 in (some.SEND, some.STOP)
    assert (some(5).name, f"{some.STOP} {some.STOP:02x} {some.STOP!s}") == ("STOP", "5 05 5")
    assert {5: "five"}[some.STOP] == "five"
    assert (int(some.STOP), some.STOP.value, some.STOP | 2) == (5, 5, 7)
    assert bytes([some.STOP]) == b"\5"
    with pytest.raises(ValueError, match=r"^7 is not a valid .*Some$"):
        some(7)


def test_members_of_int_flag(module: ModuleType) -> None:
    some: Any = make(module.IntFlag, NOTHING=0, IN=1, OUT=2, BOTH=3)
    one = some.NOTHING
    one |= some.IN
    assert one is some.IN
    assert (some.IN in one, some.OUT in one) == (True, False)
    assert (one | some.OUT) is some.BOTH
    assert (7 & some.BOTH, some(7 & some.OUT)) == (some.BOTH, some.OUT)
    assert not some.NOTHING


def test_members_of_str_enum(module: ModuleType) -> None:
    some: Any = make(module.StrEnum, OK="ok")
    assert (some.OK, f"{some.OK:>3}", str(some("ok")), some.OK.upper()) == ("ok", " ok", "ok", "OK")
    assert some.OK.name == "OK"
