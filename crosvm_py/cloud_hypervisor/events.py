# SPDX-License-Identifier: BSD-3-Clause
"""The event monitor: what happens to the VM, as JSON objects with an empty line after each."""

from __future__ import annotations

import json
import os
import time

from sys_util.errors import HostError
from sys_util.typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

# Events that a guest can cause as often as it likes: so many at once, and then so many a second.
_GUEST_BURST: Final = 64
_GUEST_PER_SECOND: Final = 8.0


def open_monitor(path: str) -> int:
    """Open the file or FIFO, and wait for the reader of a FIFO; the caller owns the descriptor.

    Raises:
        HostError: the host refuses.
    """
    try:
        return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise HostError("open --event-monitor", path) from error


class EventMonitor:
    """Writes events; what the reader does not take is lost. With ``fd`` -1 it writes nothing."""

    def __init__(self, fd: int, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._fd = fd
        self._clock = clock
        self._begun = clock()
        self._credit = float(_GUEST_BURST)
        self._counted = self._begun
        if fd >= 0:
            os.set_blocking(fd, False)

    def tell(self, source: str, event: str, properties: Mapping[str, str] | None = None) -> None:
        """Write one event."""
        if self._fd < 0:
            return
        nanos = int((self._clock() - self._begun) * 1e9)
        record = {
            "timestamp": {"secs": nanos // 10**9, "nanos": nanos % 10**9},
            "source": source,
            "event": event,
            "properties": properties,
        }
        try:
            os.write(self._fd, json.dumps(record, indent=2).encode("ascii") + b"\n\n")
        except OSError:
            return

    def tell_of_guest(
        self, source: str, event: str, properties: Mapping[str, str] | None = None
    ) -> None:
        """Write an event that the guest caused, unless it has caused too many."""
        now = self._clock()
        self._credit = min(
            float(_GUEST_BURST), self._credit + (now - self._counted) * _GUEST_PER_SECOND
        )
        self._counted = now
        if self._credit >= 1:
            self._credit -= 1
            self.tell(source, event, properties)
