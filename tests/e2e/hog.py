# SPDX-License-Identifier: BSD-3-Clause
"""Runs in the test host: ``crosvm`` whose first entropy device takes all memory that it can get.

The process that comes after it behaves, so that the guest can go on.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Final

sys.path.insert(0, "/project")

from crosvm_py.__main__ import main
from crosvm_py.kinds.table import DEVICE_KINDS
from devices.virtio.rng.device import Rng, RngSpec

if TYPE_CHECKING:
    from collections.abc import Sequence

    from devices.virtio.context import DeviceContext

OWN_BYTES: Final = 16 << 20
PIECE: Final = b"x" * (1 << 20)


class Hog(Rng):
    """Take memory when the driver is ready, until the kernel has had enough."""

    def attach(self, context: DeviceContext) -> None:
        self._hungry = context.saved.is_empty  # nobody was here before
        super().attach(context)

    def activate(self, features: int) -> None:
        super().activate(features)
        hoard = []
        while self._hungry:
            hoard.append(bytearray(PIECE))


def _build(_spec: bytes, _fds: Sequence[int]) -> Hog:
    return Hog(RngSpec())


# Far less than what the resource limits let it have, so that the group is what it runs into.
DEVICE_KINDS["rng"] = DEVICE_KINDS["rng"]._replace(build=_build, max_memory_bytes=OWN_BYTES)

sys.exit(main())
