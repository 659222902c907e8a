# SPDX-License-Identifier: BSD-3-Clause
"""The configuration of the VM in a memory file, which outlives the control process.

When that process ends, the next one finds there what clients had asked for. The file has a fixed
size, so that the policy of the process need not let it change sizes.
"""

from __future__ import annotations

import os

from sys_util.errors import Refusable
from sys_util.typing import Final

# Two configurations as clients may send them; written by us they may be somewhat longer.
MAX_BYTES: Final = 16 << 20

_LENGTH_BYTES: Final = 8


def make_store() -> int:
    """Return a new memory file, close-on-exec.

    Raises:
        HostError: the host makes none.
    """
    with Refusable("make", "a memory file for the configuration"):
        fd = os.memfd_create("crosvm_config", os.MFD_CLOEXEC)
        os.ftruncate(fd, MAX_BYTES)
    return fd


class Store:
    """The file of one VM; ``fd`` stays the caller's. With -1 nothing is kept."""

    def __init__(self, fd: int) -> None:
        self._fd = fd

    def load(self) -> bytes:
        """Return the text that was stored last, or nothing."""
        if self._fd < 0:
            return b""
        length = int.from_bytes(os.pread(self._fd, _LENGTH_BYTES, 0), "little")
        return os.pread(self._fd, min(length, MAX_BYTES), _LENGTH_BYTES)

    def load_config(self) -> bytes:
        """Return the first line of the text, which is the configuration."""
        return self.load().partition(b"\n")[0]

    def save(self, text: bytes) -> None:
        """Replace the text. One that is too long is not kept."""
        if self._fd < 0:
            return
        if len(text) > MAX_BYTES - _LENGTH_BYTES:
            text = b""
        # Without a length while it is incomplete.
        os.pwrite(self._fd, bytes(_LENGTH_BYTES), 0)
        os.pwrite(self._fd, text, _LENGTH_BYTES)
        os.pwrite(self._fd, len(text).to_bytes(_LENGTH_BYTES, "little"), 0)
