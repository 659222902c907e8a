# SPDX-License-Identifier: BSD-3-Clause
"""The part of atheris that tests/fuzz/guided.py uses."""

from collections.abc import Callable, Collection
from contextlib import AbstractContextManager

def instrument_imports(
    include: Collection[str] | None = None, exclude: Collection[str] | None = None
) -> AbstractContextManager[None]: ...
def Setup(args: list[str], test_one_input: Callable[[bytes], None]) -> list[str]: ...  # noqa: N802 - its name
def Fuzz() -> None: ...  # noqa: N802 - its name
