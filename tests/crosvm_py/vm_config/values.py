# SPDX-License-Identifier: BSD-3-Clause
"""Values of the schema for hypothesis: every class, every field, within its range."""

from __future__ import annotations

from types import NoneType
from typing import Any, Literal, TypeVar, get_args, get_origin

from hypothesis import strategies as st
from msgspec import NODEFAULT, Meta, Struct, structs

from crosvm_py.vm_config.complaint import core, limits_of
from crosvm_py.vm_config.field_types import Record

R = TypeVar("R", bound=Record)

# What UTF-8 can hold and no path excludes.
TEXTS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=8)
# What an option can hold.
OPTION_TEXTS = st.text(
    st.characters(exclude_categories=["Cs", "Cc"], exclude_characters='\0"'), min_size=1, max_size=8
)


def records(kind: type[R], texts: st.SearchStrategy[str] = TEXTS) -> st.SearchStrategy[R]:
    """Return objects of a class. A field with a default is sometimes left out."""
    needed: dict[str, st.SearchStrategy[object]] = {}
    others: dict[str, st.SearchStrategy[object]] = {}
    for field in structs.fields(kind):
        values = _values(field.type, texts)
        fields = needed if NODEFAULT is field.default is field.default_factory else others
        fields[field.name] = values
    return st.fixed_dictionaries(needed, optional=others).map(lambda values: kind(**values))


def _values(kind: object, texts: st.SearchStrategy[str]) -> st.SearchStrategy[Any]:
    bare, notes, nullable = core(kind)
    if nullable:
        return st.none() | _bare_values(bare, notes, texts)
    return _bare_values(bare, notes, texts)


def _bare_values(
    kind: object, notes: list[Meta], texts: st.SearchStrategy[str]
) -> st.SearchStrategy[Any]:
    if kind is int:
        return st.integers(*limits_of(notes))
    if kind is bool:
        return st.booleans()
    if kind is str:
        return texts
    if get_origin(kind) is Literal:
        return st.sampled_from(get_args(kind))
    if get_origin(kind) is tuple:
        return st.lists(_values(get_args(kind)[0], texts), max_size=2).map(tuple)
    if isinstance(kind, type) and issubclass(kind, Struct):
        return records(kind, texts)
    assert kind is not NoneType
    raise TypeError(f"{kind} is in no request")
