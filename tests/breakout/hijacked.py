# SPDX-License-Identifier: BSD-3-Clause
"""``python -m tests.breakout.hijacked run …``: crosvm, but its rng device was taken over.

Each request of the guest has it tell the vmm the next lie, in whichever process it then is.
"""

from __future__ import annotations

import mmap
import sys
from typing import TYPE_CHECKING, Final

from tests.breakout import lies
from tests.breakout.inmate import Inmate, taken_over

if TYPE_CHECKING:
    from devices.virtio.queue.chain import DescriptorChain

KIND: Final = "rng"
FLOOD: Final = 100
TOLD: Final = (
    "very many log lines",
    "log lines that move the cursor",
    "Ready a second time",
    "Done with what was never asked",
    "ConfigChanged to another size",
    "arrays nested 60,000 deep",
    "a message of more than 64 KiB",
)
_LIES: Final = {lie.name: lie for lie in lies.LIES}

# How many were told; every process of the device has this page.
_told = mmap.mmap(-1, mmap.PAGESIZE)


class Liar(Inmate):
    """An entropy source that speaks out of turn."""

    _is_doomed = False  # by what it said; the vmm has only not read it yet

    def handle_chain(self, queue_index: int, chain: DescriptorChain) -> None:
        """Tell the next lie, and serve the guest as long as there is somebody to serve it."""
        number = _told[0]
        if number < len(TOLD) and not self._is_doomed:
            _told[0] = number + 1
            lie = _LIES[TOLD[number]]
            self._is_doomed = lie.ends
            lies.tell(lie, self.channel(), 1, FLOOD)
        self.device.handle_chain(queue_index, chain)


def main() -> int:
    """Be crosvm."""
    from crosvm_py.__main__ import main as crosvm

    with taken_over([KIND], frozenset(), inmate=Liar):
        return crosvm()


if __name__ == "__main__":
    sys.exit(main())
