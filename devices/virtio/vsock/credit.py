# SPDX-License-Identifier: BSD-3-Clause
"""How much each side of a connection may still send (virtio 1.3 §5.10.6.3).

Each side tells the size of its buffer (``buf_alloc``) and how many bytes have left that buffer
since the start (``fwd_cnt``, modulo 2^32). The other side never has more bytes on the way than fit.
"""

from __future__ import annotations

from devices.virtio.vsock.packet import PacketError
from sys_util.typing import Final

_MASK: Final = 0xFFFF_FFFF

# If the guest believes that it has less credit than this, it is told of every byte that leaves.
_LITTLE_BYTES: Final = 4096


class Credit:
    """Both directions of one connection, as the device counts them."""

    __slots__ = (
        "_fwd_cnt",
        "_peer_buf_alloc",
        "_peer_fwd_cnt",
        "_received",
        "_sent",
        "_told",
        "buffer_bytes",
    )

    def __init__(self, buffer_bytes: int) -> None:
        """``buffer_bytes`` is what the guest may send before the host has taken any of it."""
        self.buffer_bytes = buffer_bytes
        self._received = 0  # from the guest
        self._fwd_cnt = 0  # of these, delivered to the host
        self._told = 0  # the fwd_cnt that the guest knows
        self._sent = 0  # to the guest
        self._peer_buf_alloc = 0
        self._peer_fwd_cnt = 0

    def receive(self, length: int) -> None:
        """Count data from the guest.

        Raises:
            PacketError: it is more than the guest was allowed.
        """
        waiting = (self._received - self._fwd_cnt) & _MASK
        if waiting + length > self.buffer_bytes:
            raise PacketError(
                f"{length} bytes of data with credit for {self.buffer_bytes - waiting}"
            )
        self._received = (self._received + length) & _MASK

    def deliver(self, length: int) -> None:
        """Count data that the host has taken."""
        self._fwd_cnt = (self._fwd_cnt + length) & _MASK

    def update_is_due(self, *, at_once: bool) -> bool:
        """Return whether to tell the guest of its new credit; ``at_once``: of any change."""
        untold = (self._fwd_cnt - self._told) & _MASK
        if not untold:
            return False
        believed = self.buffer_bytes - ((self._received - self._told) & _MASK)
        return at_once or untold >= self.buffer_bytes // 4 or believed < _LITTLE_BYTES

    def tell(self) -> tuple[int, int]:
        """Return ``buf_alloc`` and ``fwd_cnt`` for a packet to the guest."""
        self._told = self._fwd_cnt
        return self.buffer_bytes, self._fwd_cnt

    def learn(self, buf_alloc: int, fwd_cnt: int) -> None:
        """Take both from a packet of the guest.

        Two processors of the guest may send their packets in the wrong order, so ``fwd_cnt`` may
        also go back.

        Raises:
            PacketError: the guest says that it took more than was sent.
        """
        if (self._sent - fwd_cnt) & _MASK > _MASK >> 1:
            raise PacketError(f"fwd_cnt {fwd_cnt:#x} is ahead of the {self._sent:#x} bytes sent")
        self._peer_buf_alloc = buf_alloc
        self._peer_fwd_cnt = fwd_cnt

    @property
    def peer_buffer_bytes(self) -> int:
        """The size of the guest's buffer."""
        return self._peer_buf_alloc

    @property
    def room(self) -> int:
        """How many bytes the guest can take now."""
        return max(0, self._peer_buf_alloc - ((self._sent - self._peer_fwd_cnt) & _MASK))

    def send(self, length: int) -> None:
        """Count data to the guest."""
        self._sent = (self._sent + length) & _MASK
