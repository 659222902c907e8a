# SPDX-License-Identifier: BSD-3-Clause
"""How many moulds start at one time: no more than there are processors.

When a busy host makes every device of a VM miss its deadline at once, as many moulds are wanted at
once. If all of them started together, each would get a part of the processor and miss its own
deadline, so that the work of all would be thrown away, again and again.
"""

from __future__ import annotations

from collections import deque

from sys_util.typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from crosvm_py.warden.forge_proxy import Mould


class StartQueue:
    """The moulds that start now, and those that wait for it."""

    def __init__(self, most: int, execute: Callable[[Mould], None]) -> None:
        """``execute`` begins to start a mould; it may not raise."""
        self._most = most
        self._execute = execute
        self._starting: list[Mould] = []
        self._waiting: deque[Mould] = deque()

    def add(self, mould: Mould) -> None:
        """Start a mould, now or later."""
        self._waiting.append(mould)
        self._start()

    def leave(self, mould: Mould) -> None:
        """Note that a mould has started, or has failed, so that the next one can."""
        if mould in self._starting:
            self._starting.remove(mould)
            self._start()
        elif mould in self._waiting:
            self._waiting.remove(mould)

    def _start(self) -> None:
        while self._waiting and len(self._starting) < self._most:
            mould = self._waiting.popleft()
            self._starting.append(mould)
            self._execute(mould)
