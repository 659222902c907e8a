# SPDX-License-Identifier: BSD-3-Clause
"""What Python knows of a queue that native code serves."""

from __future__ import annotations

from sys_util.typing import TYPE_CHECKING, Final, Protocol

if TYPE_CHECKING:
    from devices.virtio.counters import Counters
    from devices.virtio.queue.split_queue import Handover

# How the turn of an engine ended.
ENGINE_IDLE: Final = 0  # the ring is empty
ENGINE_MORE: Final = 1  # there are more chains, for which no kick will come
ENGINE_PYTHON: Final = 2  # Python has to serve the next chain


class EngineQueue(Protocol):
    """A queue that native code serves, a turn at a time; Python takes it back for some chains."""

    @property
    def rests(self) -> bool:
        """Whether Python has to serve the queue for now, as ``gate`` does not say it."""
        ...

    def turn(self, counters: Counters) -> int:
        """Serve and count one turn; return one of the ``ENGINE_`` values."""
        ...

    def take(self) -> Handover:
        """Return the position in the queue from which Python goes on."""
        ...

    def give(self, start: Handover) -> None:
        """Go on from the position that Python has reached."""
        ...

    def close(self) -> None:
        """End; the queue's memory is not touched after this."""
        ...
