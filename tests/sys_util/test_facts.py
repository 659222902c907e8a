# SPDX-License-Identifier: BSD-3-Clause
"""Compare ``fact`` and ``NamedTuple`` with the standard library's classes that they replace."""

from __future__ import annotations

import copy
import pickle
import typing
from dataclasses import dataclass
from typing import ClassVar

import pytest

from sys_util import facts
from sys_util import typing as ours

T = ours.TypeVar("T")


@dataclass(frozen=True, slots=True)
class Standard:
    LIMIT: ClassVar[int] = 7
    a: int
    b: str = "b"

    def doubled(self) -> int:
        """Return twice ``a``."""
        return 2 * self.a


@facts.fact
class Fact:
    """A fact."""

    LIMIT: ClassVar[int] = 7
    a: int
    b: str = "b"

    def doubled(self) -> int:
        """Return twice ``a``."""
        return 2 * self.a


@facts.fact
class Other:
    a: int
    b: str


class StandardPair(typing.NamedTuple):
    a: int
    b: str = "b"

    @property
    def doubled(self) -> int:
        return 2 * self.a


class Pair(ours.NamedTuple):
    """A pair."""

    a: int
    b: str = "b"

    @property
    def doubled(self) -> int:
        return 2 * self.a


def test_fact_shows_itself_as_a_dataclass_does() -> None:
    assert repr(Fact(1)) == repr(Standard(1)).replace("Standard", "Fact")
    assert vars(Fact)["__slots__"] == Standard.__slots__ == ("a", "b")
    assert Fact.__match_args__ == Standard.__match_args__
    assert (Fact.__doc__, Fact.__name__, Fact.__module__) == ("A fact.", "Fact", __name__)
    assert not hasattr(Fact(1), "__dict__")


def test_fact_keeps_class_variables_and_methods() -> None:
    assert Fact.LIMIT == Standard.LIMIT
    assert Fact(4).doubled() == 8


def test_fact_takes_values_by_place_and_by_name() -> None:
    assert Fact(1) == Fact(a=1) == Fact(b="b", a=1) == Fact(1, "b") == Fact(1, b="b")


def test_fact_equality_and_hash_are_of_the_class_and_the_fields() -> None:
    assert Fact(1) != Fact(2)
    other: object = Other(1, "b")
    assert Fact(1) != other
    assert len({Fact(1), Fact(1, "b"), Fact(2)}) == 2


def test_fields_of_a_fact_have_their_order() -> None:
    assert list(facts.fields_of(Fact(b="x", a=1)).items()) == [("a", 1), ("b", "x")]


def test_fact_matches_by_place() -> None:
    match Fact(3):
        case Fact(a, b):
            assert (a, b) == (3, "b")
        case _:
            pytest.fail("does not match its own class")


@pytest.mark.parametrize("name", ["a", "new"])
def test_fact_cannot_be_changed(name: str) -> None:
    record = Fact(1)
    with pytest.raises(AttributeError, match=f"Fact.{name} cannot be changed"):
        setattr(record, name, 2)
    with pytest.raises(AttributeError, match=f"Fact.{name} cannot be deleted"):
        delattr(record, name)
    assert record.a == 1


def test_fact_with_a_base_class_is_refused() -> None:
    with pytest.raises(TypeError, match="Below is a fact and has no base class"):

        @facts.fact
        class Below(Other):
            c: int


WRONG_CALLS = [
    pytest.param((), {}, "lacks or does not know: a", id="missing"),
    pytest.param((1, "b", 3), {}, "takes 2 values, not 3", id="too-many"),
    pytest.param((1,), {"a": 1}, "got a twice", id="twice"),
    pytest.param((1,), {"c": 1}, "lacks or does not know: c", id="unknown"),
]


@pytest.mark.parametrize("kind", [Fact, Pair])
@pytest.mark.parametrize(("args", "kwargs", "reason"), WRONG_CALLS)
def test_wrong_arguments_are_refused(
    kind: typing.Callable[..., object],
    args: tuple[object, ...],
    kwargs: dict[str, object],
    reason: str,
) -> None:
    with pytest.raises(TypeError, match=reason):
        kind(*args, **kwargs)


def test_named_tuple_is_the_tuple_that_typing_makes() -> None:
    pair, standard = Pair(1), StandardPair(1)
    assert (*pair,) == (*standard,) == (1, "b")
    assert pair == (1, "b")
    assert hash(pair) == hash(standard)
    assert repr(pair) == repr(standard).replace("StandardPair", "Pair")
    assert (pair.a, pair.b, pair.doubled) == (1, "b", 2)
    assert pair._asdict() == standard._asdict()
    assert (Pair._fields, Pair._field_defaults) == (
        StandardPair._fields,
        StandardPair._field_defaults,
    )
    assert (Pair.__doc__, Pair.__name__, Pair.__module__) == ("A pair.", "Pair", __name__)
    assert not hasattr(pair, "__dict__")


def test_named_tuple_unpacks_matches_and_compares_as_a_tuple() -> None:
    a, b = Pair(2, "x")
    assert (a, b) == (2, "x")
    match Pair(2):
        case Pair(a=2, b=b):
            assert b == "b"
        case _:
            pytest.fail("does not match its own class")
    assert Pair(1) < Pair(2) < (2, "c")


def test_named_tuple_makes_changed_copies() -> None:
    assert Pair(1)._replace(b="c") == Pair(1, "c")
    assert Pair._make([1, "c"]) == Pair(1, "c")
    with pytest.raises(TypeError, match="lacks or does not know: c"):
        Pair(1)._replace(c=1)  # type: ignore[call-arg]  # it must refuse
    assert copy.copy(Pair(1)) == pickle.loads(pickle.dumps(Pair(1))) == Pair(1)


def test_named_tuple_fields_cannot_be_changed() -> None:
    with pytest.raises(AttributeError):
        Pair(1).a = 2  # type: ignore[misc]  # it must refuse
    with pytest.raises(AttributeError):
        Pair(1).c = 2  # type: ignore[attr-defined]  # it must refuse


class Shape(ours.Protocol):
    def area(self) -> int: ...


class Box(ours.Generic[T]):
    pass


def test_forms_exist_at_run_time_and_take_brackets() -> None:
    assert isinstance(Box(), Box)
    assert isinstance(Shape(), Shape)  # type: ignore[misc]  # ours adds nothing
    text: object = "text"
    assert ours.cast("int", text) is text
    forms: list[object] = [ours.ClassVar, ours.Final, ours.Literal, ours.Self, ours.TypeAlias]
    assert len(forms) == len([form for form in forms if not isinstance(form, type)])


@facts.fact
class Replaced:
    a: int
    b: str = "b"


def test_replaced_fact_is_another_one_with_the_rest_as_it_was() -> None:
    before = Replaced(1, "x")
    assert facts.replace(before, a=2) == Replaced(2, "x")
    assert before == Replaced(1, "x")
    with pytest.raises(TypeError, match="lacks or does not know: c"):
        facts.replace(before, c=3)
