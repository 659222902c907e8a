# SPDX-License-Identifier: BSD-3-Clause
"""The classes of ``enum`` that this project uses, without the 1 ms and the memory that it takes.

A type checker sees ``enum`` itself here. At run time a class has its members by name and in their
order, ``Class(value)`` finds one, and each has ``name`` and ``value``. Two names for one value are
no aliases here. An ``IntFlag`` needs a member for every combination that occurs.
"""

from __future__ import annotations

TYPE_CHECKING = False  # a type checker takes this name for true, as it does in typing
if TYPE_CHECKING:
    from collections.abc import Iterator
    from enum import Enum as Enum
    from enum import IntEnum as IntEnum
    from enum import IntFlag as IntFlag
    from enum import StrEnum as StrEnum
else:

    def _is_member(name: str, value: object) -> bool:
        return not name.startswith("_") and not hasattr(type(value), "__get__")

    class _EnumType(type):
        """Makes members of the values in the body of a class."""

        def __new__(mcs, name: str, bases: tuple[type, ...], body: dict[str, object]) -> _EnumType:
            values = {key: body[key] for key in body if _is_member(key, body[key])}
            cls = super().__new__(
                mcs, name, bases, {key: body[key] for key in body if key not in values}
            )
            cls._members = {}
            for key, value in values.items():
                base = next((base for base in (int, str) if issubclass(cls, base)), None)
                member = base.__new__(cls, value) if base else object.__new__(cls)
                member.name, member.value = key, value
                cls._members[value] = member
                setattr(cls, key, member)
            return cls

        def __call__(cls, value: object) -> object:
            try:
                return cls._members[value]
            except KeyError:
                raise ValueError(f"{value!r} is not a valid {cls.__name__}") from None

        def __iter__(cls) -> Iterator[object]:
            return iter(cls._members.values())

        def __len__(cls) -> int:
            return len(cls._members)

    class Enum(metaclass=_EnumType):
        """A class whose members are equal only to themselves."""

        def __repr__(self) -> str:
            return f"{type(self).__name__}.{self.name}"

    class IntEnum(int, Enum):
        """A class whose members are integers."""

        __repr__ = Enum.__repr__
        __str__ = int.__repr__

    class StrEnum(str, Enum):
        """A class whose members are strings."""

        __repr__ = Enum.__repr__
        __str__ = str.__str__

    class IntFlag(IntEnum):
        """A class whose members are sets of bits."""

        def __or__(self, other: int) -> IntFlag:
            return type(self)(int(self) | other)

        def __and__(self, other: int) -> IntFlag:
            return type(self)(int(self) & other)

        __ror__, __rand__ = __or__, __and__

        def __contains__(self, other: int) -> bool:
            return int(self) & other == other
