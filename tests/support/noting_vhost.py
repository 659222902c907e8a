# SPDX-License-Identifier: BSD-3-Clause
"""A /dev/vhost-* of no kernel: it notes what a device tells it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sys_util.vhost import Vhost

if TYPE_CHECKING:
    from sys_util.guest_memory import GuestMemory
    from sys_util.vhost import VhostRing


class NotingVhost(Vhost):
    """A kernel device that remembers what it was asked for."""

    def __init__(self, features: int) -> None:
        super().__init__(-1)
        self.offered = features
        self.accepted = 0
        self.owned = 0
        self.memory: GuestMemory | None = None
        self.rings: dict[int, tuple[VhostRing, int]] = {}
        self.eventfds: dict[int, tuple[int, int, int]] = {}

    def features(self) -> int:
        return self.offered

    def set_features(self, features: int) -> None:
        self.accepted = features

    def set_owner(self) -> None:
        self.owned += 1

    def set_memory(self, memory: GuestMemory) -> None:
        self.memory = memory

    def set_ring(self, ring: VhostRing, next_avail: int, memory: GuestMemory) -> None:
        self.rings[ring.number] = (ring, next_avail)

    def set_eventfds(self, number: int, kick_fd: int, call_fd: int, error_fd: int) -> None:
        self.eventfds[number] = (kick_fd, call_fd, error_fd)
