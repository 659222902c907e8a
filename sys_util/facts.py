# SPDX-License-Identifier: BSD-3-Clause
"""Small replacements for ``dataclass(frozen=True, slots=True)`` (``fact``) and ``NamedTuple``.

Use a ``NamedTuple`` for values that are unpacked, compared or written as a row, or replaced one by
one: a queue's activation, a line of a table, several results of a function. Use a ``fact`` for a
record that must not be confused with another kind of record: what a user asked for (``…Spec``), a
message between processes, a step of a jail. Two tuples with equal values are equal even if their
classes differ; two facts of different classes are never equal.

The reason for our own classes is the time of a start: ``dataclasses`` and ``typing.NamedTuple``
compile source text for every class, which takes thirty and ten times as long, and importing those
modules takes longer than starting Python. The fields are the annotated names of the class body, in
their order; annotations must be strings (``from __future__ import annotations``). Features that
this project does not use are missing, such as field options and inheritance of fields.
"""

from __future__ import annotations

from operator import itemgetter

TYPE_CHECKING = False  # a type checker takes this name for true, as it does in typing
if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from typing import ClassVar, Self, TypeVar, dataclass_transform

    T = TypeVar("T")
else:

    def dataclass_transform(**_: bool) -> object:
        """Stand in for ``typing.dataclass_transform``, which only a checker reads."""
        return lambda decorator: decorator


def _bind(
    owner: type,
    names: Sequence[str],
    defaults: Mapping[str, object],
    args: tuple[object, ...],
    kwargs: dict[str, object],
) -> Sequence[object]:
    """Return one value for each of ``names``; raise ``TypeError`` as a call with them would."""
    if len(args) == len(names) and not kwargs:
        return args
    if len(args) > len(names):
        raise TypeError(f"{owner.__name__} takes {len(names)} values, not {len(args)}")
    values = dict(zip(names, args, strict=False))
    for name, value in kwargs.items():
        if name in values:
            raise TypeError(f"{owner.__name__} got {name} twice")
        values[name] = value
    for name, default in defaults.items():
        values.setdefault(name, default)
    if values.keys() != set(names):
        wrong = ", ".join(sorted(values.keys() ^ set(names)))
        raise TypeError(f"{owner.__name__} lacks or does not know: {wrong}")
    return [values[name] for name in names]


class _Fact:
    """The base of every fact."""

    __slots__: ClassVar[tuple[str, ...]] = ()
    __match_args__: ClassVar[tuple[str, ...]] = ()
    _field_defaults: ClassVar[dict[str, object]] = {}

    def __init__(self, *args: object, **kwargs: object) -> None:
        names = self.__match_args__
        values = _bind(type(self), names, self._field_defaults, args, kwargs)
        for name, value in zip(names, values, strict=True):
            object.__setattr__(self, name, value)

    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError(f"{type(self).__name__}.{name} cannot be changed")

    def __delattr__(self, name: str) -> None:
        raise AttributeError(f"{type(self).__name__}.{name} cannot be deleted")

    def __eq__(self, other: object) -> bool:
        if type(other) is not type(self):
            return NotImplemented
        return fields_of(self) == fields_of(other)

    def __hash__(self) -> int:
        return hash(tuple(fields_of(self).values()))

    def __repr__(self) -> str:
        return _show(self)


def _show(record: _Fact | _Tuple) -> str:
    fields = ", ".join(f"{name}={getattr(record, name)!r}" for name in record.__match_args__)
    return f"{type(record).__qualname__}({fields})"


@dataclass_transform(frozen_default=True)
def fact(cls: type[T]) -> type[T]:
    """Return a class that behaves as if decorated with ``@dataclass(frozen=True, slots=True)``."""
    if cls.__bases__ != (object,):
        raise TypeError(f"{cls.__name__} is a fact and has no base class")
    body = dict(vars(cls))
    for name in ("__dict__", "__weakref__"):
        body.pop(name, None)
    names = [name for name, kind in cls.__annotations__.items() if not kind.startswith("ClassVar")]
    body["_field_defaults"] = {name: body.pop(name) for name in names if name in body}
    body["__slots__"] = body["__match_args__"] = tuple(names)
    body["__qualname__"] = cls.__qualname__
    made: type[T] = type(cls.__name__, (_Fact,), body)
    return made


def fields_of(record: object) -> dict[str, object]:
    """Return the fields of a fact by name, in their order."""
    names: tuple[str, ...] = type(record).__match_args__  # type: ignore[attr-defined]  # a fact's
    return {name: getattr(record, name) for name in names}


def replace(record: T, **changes: object) -> T:
    """Return a copy of a fact with other values in the fields that are named."""
    return type(record)(**(fields_of(record) | changes))


class _Tuple(tuple[object, ...]):
    """The base of every named tuple."""

    __slots__ = ()
    _fields: ClassVar[tuple[str, ...]] = ()
    _field_defaults: ClassVar[dict[str, object]] = {}
    __match_args__: ClassVar[tuple[str, ...]] = ()

    def __new__(cls, *args: object, **kwargs: object) -> Self:
        values = _bind(cls, cls._fields, cls._field_defaults, args, kwargs)
        return tuple.__new__(cls, values)

    def __repr__(self) -> str:
        return _show(self)

    def __getnewargs__(self) -> tuple[object, ...]:
        return tuple(self)

    @classmethod
    def _make(cls, values: Iterable[object]) -> Self:
        """Build one from its values in order."""
        return cls(*values)

    def _replace(self, **changes: object) -> Self:
        """Return a copy with other values in the fields that are named."""
        return type(self)(**(self._asdict() | changes))

    def _asdict(self) -> dict[str, object]:
        """Return the fields by name."""
        return dict(zip(self._fields, self, strict=True))


class _NamedTupleType(type):
    """Make a subclass of ``_Tuple`` from the body of a class that derives from ``NamedTuple``."""

    def __new__(mcs, name: str, bases: tuple[type, ...], body: dict[str, object]) -> type:
        if not bases:
            return super().__new__(mcs, name, bases, body)
        annotations = body.get("__annotations__", {})
        names = tuple(annotations) if isinstance(annotations, dict) else ()
        defaults = {name: body.pop(name) for name in names if name in body}
        body |= {name: property(itemgetter(at)) for at, name in enumerate(names)}
        body |= {
            "__slots__": (),
            "_fields": names,
            "_field_defaults": defaults,
            "__match_args__": names,
        }
        return type(name, (_Tuple,), body)


class NamedTuple(metaclass=_NamedTupleType):
    """The base class of a named tuple, used like ``typing.NamedTuple``."""
