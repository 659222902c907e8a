# SPDX-License-Identifier: BSD-3-Clause
"""A call of a client, and what an endpoint is."""

from __future__ import annotations

from sys_util.typing import TYPE_CHECKING, NamedTuple, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable

    from crosvm_py.api.steps import Steps
    from crosvm_py.api.vm import ApiVm
    from crosvm_py.vm_config.field_types import Record

R = TypeVar("R")


class Call(NamedTuple):
    """One call of a client. Descriptors that it does not take are closed when it ends."""

    body: Record | None = None
    fds: tuple[int, ...] = ()

    def taken(self, kind: type[R]) -> R:
        """Return the body, which the route has checked to be a ``kind``."""
        if not isinstance(self.body, kind):
            raise TypeError(f"a body of {type(self.body).__name__}")
        return self.body


class Route(NamedTuple):
    """One endpoint. ``failure`` is how errors name it; ``body`` is ``None`` if it takes none."""

    method: str
    failure: str
    steps: Callable[[ApiVm, Call], Steps]
    body: type[Record] | None = None
