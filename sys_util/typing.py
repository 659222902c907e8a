# SPDX-License-Identifier: BSD-3-Clause
"""The names of ``typing`` that this project uses, without the 8 ms that importing it takes.

A type checker sees ``typing`` itself here. At run time annotations are strings that nobody reads,
so most of these names only have to exist.
"""

from __future__ import annotations

TYPE_CHECKING = False  # a type checker takes this name for true, as it does in typing
if TYPE_CHECKING:
    from typing import ClassVar as ClassVar
    from typing import Final as Final
    from typing import Generic as Generic
    from typing import Literal as Literal
    from typing import NamedTuple as NamedTuple
    from typing import NoReturn as NoReturn
    from typing import Protocol as Protocol
    from typing import Self as Self
    from typing import TypeAlias as TypeAlias
    from typing import TypeVar as TypeVar
    from typing import cast as cast
else:
    from sys_util.facts import NamedTuple as NamedTuple

    class _Form:
        """A name for annotations; ``Form[...]`` and ``Form | ...`` return it unchanged."""

        def __init__(self, *_: object, **__: object) -> None:
            pass

        def __getitem__(self, _: object) -> _Form:
            return self

        def __or__(self, _: object) -> _Form:
            return self

        __ror__ = __or__

    ClassVar = Final = Literal = NoReturn = Self = TypeAlias = _Form()
    TypeVar = _Form

    class Protocol:
        """A base class that adds nothing."""

        __slots__ = ()

    class Generic:
        """A base class that can be written with brackets and adds nothing else."""

        __slots__ = ()

        def __class_getitem__(cls, _: object) -> type:
            return cls

    def cast(_: object, value: object) -> object:
        """Return ``value``."""
        return value
