# SPDX-License-Identifier: BSD-3-Clause
"""``python -m tests.breakout.hijacked run …``: crosvm, but its rng device was taken over.

Each request of the guest has it tell the vmm the next lie, in whichever process it then is.
"""

from __future__ import annotations

import mmap
import sys
from contextlib import contextmanager
from tempfile import NamedTemporaryFile
from typing import TYPE_CHECKING, Final
from unittest import mock

from crosvm_py.warden import forge
from devices.virtio.queue.servers import ChainServer
from devices.virtio.rng.device import Rng
from tests.breakout import lies
from tests.breakout.inmate import Inmate, taken_over

if TYPE_CHECKING:
    from collections.abc import Iterator

    from devices.virtio.queue.chain import DescriptorChain
    from devices.virtio.queue.chain_loop import Gate
    from devices.virtio.queue.servers import QueueServer, StartedQueue

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

# In a mould, which makes all processes of the device but the first.
_BOOT: Final = """
import sys
sys.path[:] = sys.argv[3:]
from tests.breakout import hijacked
taken = hijacked.move_in({path!r})  # kept: what is collected ends
taken.__enter__()
"""

# How many were told; every process of the device has this page, which is a file.
_told = mmap.mmap(-1, mmap.PAGESIZE)


class Liar(Inmate):
    """An entropy source that speaks out of turn."""

    _is_doomed = False  # by what it said; the vmm has only not read it yet

    @property
    def _rng(self) -> Rng:
        assert isinstance(self.device, Rng)
        return self.device

    @property
    def name(self) -> str:
        return self._rng.name

    @property
    def gate(self) -> Gate | None:
        return self._rng.gate

    def make_server(self, queue: StartedQueue) -> QueueServer:
        """Serve the guest as the device does, and see each chain first."""
        return ChainServer(queue, self)

    def handle_chain(self, queue_index: int, chain: DescriptorChain) -> None:
        """Tell the next lie, and serve the guest as long as there is somebody to serve it."""
        number = _told[0]
        if number < len(TOLD) and not self._is_doomed:
            _told[0] = number + 1
            lie = _LIES[TOLD[number]]
            self._is_doomed = lie.ends
            lies.tell(lie, self.channel(), 1, FLOOD)
        self._rng.handle_chain(queue_index, chain)


@contextmanager
def move_in(path: str) -> Iterator[None]:
    """Have the processes of the device that are made here be taken over; ``path`` has the page."""
    global _told
    with open(path, "r+b") as page:
        _told = mmap.mmap(page.fileno(), mmap.PAGESIZE)
    with taken_over([KIND], frozenset(), inmate=Liar):
        yield


def main() -> int:
    """Be crosvm."""
    from crosvm_py.__main__ import main as crosvm

    with NamedTemporaryFile() as page:
        page.truncate(mmap.PAGESIZE)
        boot = _BOOT.format(path=page.name) + forge.BOOT
        with mock.patch.object(forge, "BOOT", boot), move_in(page.name):
            return crosvm()


if __name__ == "__main__":
    sys.exit(main())
