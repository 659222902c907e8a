# SPDX-License-Identifier: BSD-3-Clause
"""Classes for facts: ``fact`` for frozen records with slots, ``NamedTuple`` for tuples with names.

Which of the two: a ``NamedTuple`` where the parts are taken apart, compared or packed as a row, and
may be replaced one by one: a queue's activation, a line of a table, several results of a function.
A ``fact`` where the whole has a meaning of its own and must not be mixed up with another whole of
the same values: what a user asked for (``…Spec``), each message between processes, a step of a
jail. Two tuples with equal values are equal whatever they are called; two facts are not.

They do what ``dataclasses`` and ``typing.NamedTuple`` do for the classes of this project, in a
thirtieth and a tenth of the time: those two compile source text for every class, and importing
them costs more than starting Python. Fields are the annotated names of the class body in their
order; annotations must be strings (``from __future__ import annotations``). Left out: whatever
nobody here uses, such as field options and inheritance of fields.
"""

from __future__ import annotations

from operator import itemgetter

TYPE_CHECKING = False  # as in typing; a checker takes it for true
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
    """Return one value for each of ``names``, or say as a call would what is wrong."""
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
    """Make ``cls`` what ``@dataclass(frozen=True, slots=True)`` makes of it."""
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
    """Turn the body of a class below ``NamedTuple`` into a tuple's."""

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
    """The base class to write, as with ``typing.NamedTuple``."""
