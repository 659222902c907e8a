# SPDX-License-Identifier: BSD-3-Clause
"""What both vsock devices have in common: ours over UNIX sockets, and the host kernel's."""

from __future__ import annotations

from sys_util.facts import fact
from sys_util.typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from devices.virtio.port import QueuePort

RX_QUEUE: Final = 0
TX_QUEUE: Final = 1
EVENT_QUEUE: Final = 2

VIRTIO_VSOCK_F_STREAM: Final = 0
VIRTIO_VSOCK_F_SEQPACKET: Final = 1
VIRTIO_VSOCK_F_NO_IMPLIED_STREAM: Final = 2

# What the device over UNIX sockets counts of its own, by name.
COUNTERS: Final = ("from_guest", "from_host", "refused", "resets")
FROM_GUEST, FROM_HOST, REFUSED, RESETS = range(len(COUNTERS))

VIRTIO_VSOCK_EVENT_TRANSPORT_RESET: Final = 0

_EVENT: Final = VIRTIO_VSOCK_EVENT_TRANSPORT_RESET.to_bytes(4, "little")


@fact
class VsockSpec:
    """What the user asked for: the guest's address, and the socket of the host's side.

    Without ``socket`` the host's kernel serves the device.
    """

    cid: int
    socket: str | None = None


class EventSender:
    """Tell a driver whose device is a new process that its connections are gone (§5.10.6.8).

    What waits in the rings of the old process stays valid; who was connected with whom is lost.
    """

    def __init__(self) -> None:
        self._done = False

    def reset(self) -> None:
        """Forget the driver."""
        self._done = False

    def serve(self, port: QueuePort | None) -> None:
        """Send the event that is due once there is a buffer for it."""
        if port is None or not port.resumed or self._done:
            return
        while (chain := port.take()) is not None:
            fits = chain.writer.remaining >= len(_EVENT)
            if fits:
                chain.writer.write(_EVENT)
            port.give_back(chain)
            if fits:
                self._done = True
                break
        else:
            port.wait()
        port.flush()
