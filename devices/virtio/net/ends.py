# SPDX-License-Identifier: BSD-3-Clause
"""The host's end of a network device: what it is, and a queue of a TAP.

Every end speaks in frames with struct virtio_net_hdr before them. Nothing here waits.
"""

from __future__ import annotations

import errno
import os

from sys_util import tap
from sys_util.errors import VmmError
from sys_util.typing import TYPE_CHECKING, Final, Protocol

if TYPE_CHECKING:
    from collections.abc import Sequence


class EndGoneError(VmmError):
    """The network behind the device is no more: the TAP was deleted, or passt has ended."""


class NetEnd(Protocol):
    """Where frames go to and come from."""

    fd: int

    @property
    def buffered(self) -> bool:
        """Whether a frame is here that the readiness of ``fd`` does not tell of."""
        ...

    @property
    def unsent(self) -> bool:
        """Whether bytes of an accepted frame wait until ``fd`` can be written."""
        ...

    def receive(self, vectors: Sequence[memoryview]) -> int:
        """Store header and frame in ``vectors``, which are large enough; return their length.

        Raises:
            BlockingIOError: there is no frame now.
            EndGoneError: nor will there be one.
            OSError: there was one, which the host does not give.
        """
        ...

    def send(self, header: bytes, frame: Sequence[memoryview]) -> None:
        """Pass one frame on.

        Raises:
            BlockingIOError: not now.
            EndGoneError: never again.
            OSError: not this frame.
        """
        ...

    def may_repeat(self, frame: Sequence[memoryview]) -> bool:
        """Return whether a frame may come twice, as when the sender is killed in the middle."""
        ...

    def flush(self) -> None:
        """Write what is ``unsent``, as far as ``fd`` takes it.

        Raises:
            EndGoneError: nobody will ever take it.
        """
        ...

    def commit(self) -> bool:
        """Let go of the frames received so far, which the driver sees now.

        Returns:
            Whether there were any; the next ones may be here. ``receive`` may wait for this.
        """
        ...

    def set_offloads(self, flags: int) -> None:
        """Say what the driver can take, in the TUN_F_* of TUNSETOFFLOAD."""
        ...

    def set_attached(self, *, attached: bool) -> None:
        """Take this queue into, or out of, the spreading of frames over queues."""
        ...

    def close(self) -> None:
        """Close ``fd``."""
        ...


class TapEnd:
    """One queue of a TAP, non-blocking, with a virtio_net_hdr of 12 bytes. Owns ``fd``."""

    buffered: Final = False
    unsent: Final = False

    def __init__(self, fd: int) -> None:
        self.fd = fd
        self._attached = True

    def close(self) -> None:
        os.close(self.fd)
        self.fd = -1

    def find_attached(self) -> None:
        """Learn whether the queue is attached: an earlier process may have had it otherwise."""
        self._attached = tap.is_attached(self.fd)

    def receive(self, vectors: Sequence[memoryview]) -> int:
        try:
            return os.readv(self.fd, vectors)
        except OSError as error:
            if error.errno != errno.EBADFD:  # as EINVAL of tun for segments that have no GSO type
                raise
            raise EndGoneError(f"TAP: {error.strerror}") from error

    def send(self, header: bytes, frame: Sequence[memoryview]) -> None:
        try:
            os.writev(self.fd, [header, *frame])
        except OSError as error:
            if error.errno == errno.EBADFD:
                raise EndGoneError(f"TAP: {error.strerror}") from error
            raise

    def may_repeat(self, frame: Sequence[memoryview]) -> bool:
        """A network may repeat any frame."""
        return True

    def flush(self) -> None:
        """A TAP takes a frame whole or not at all."""

    def commit(self) -> bool:
        """A TAP keeps no frame that was read."""
        return False

    def set_offloads(self, flags: int) -> None:
        tap.set_offloads(self.fd, flags)

    def set_attached(self, *, attached: bool) -> None:
        if attached != self._attached:
            self._attached = attached
            tap.attach_queue(self.fd, attached=attached)
