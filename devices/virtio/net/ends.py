# SPDX-License-Identifier: BSD-3-Clause
"""The host's end of a network device: its interface, and the end that is a queue of a TAP.

Every end takes and gives frames with a struct virtio_net_hdr before each. Nothing here waits.
"""

from __future__ import annotations

import errno
import os

from devices.virtio.net.vectors import scatter
from sys_util import tap
from sys_util.errors import VmmError
from sys_util.typing import TYPE_CHECKING, Final, Protocol

if TYPE_CHECKING:
    from collections.abc import Sequence


class EndGoneError(VmmError):
    """The network behind the device is gone: the TAP was deleted, or passt has ended."""


class NetEnd(Protocol):
    """Where frames go to and come from."""

    fd: int

    @property
    def buffered(self) -> bool:
        """Whether a frame is already in this process, so that ``fd`` need not be readable."""
        ...

    @property
    def unsent(self) -> bool:
        """Whether bytes of an accepted frame wait until ``fd`` can be written."""
        ...

    def receive(self, vectors: Sequence[memoryview]) -> int:
        """Store header and frame in ``vectors``, which are large enough; return their length.

        Raises:
            BlockingIOError: there is no frame now.
            EndGoneError: no frame will ever come.
            OSError: there was a frame, but the host could not deliver it.
        """
        ...

    def send(self, header: bytes, frame: Sequence[memoryview]) -> None:
        """Pass one frame on.

        Raises:
            BlockingIOError: the host takes no frame now.
            EndGoneError: the host will never take one.
            OSError: the host refuses this frame.
        """
        ...

    def may_repeat(self, frame: Sequence[memoryview]) -> bool:
        """Return whether a restarted process may send a frame again that was sent already."""
        ...

    def flush(self) -> None:
        """Write what is ``unsent``, as far as ``fd`` takes it.

        Raises:
            EndGoneError: the host will never take it.
        """
        ...

    def commit(self) -> bool:
        """Remove the frames received so far from the host's end: the driver has them now.

        Returns:
            Whether there were any. Then call ``receive`` again: some ends give no frame before.
        """
        ...

    def set_offloads(self, flags: int) -> None:
        """Tell which offloads the driver can take, as the TUN_F_* of TUNSETOFFLOAD."""
        ...

    def set_attached(self, *, attached: bool) -> None:
        """Tell whether this queue gets a share of the frames."""
        ...

    def close(self) -> None:
        """Close ``fd``."""
        ...


class TapEnd:
    """One queue of a TAP, non-blocking, with a virtio_net_hdr of 12 bytes. Owns ``fd``."""

    unsent: Final = False

    def __init__(self, fd: int) -> None:
        self.fd = fd
        self._attached = True
        self._returned: bytes | int | None = None  # a frame, or an errno

    @property
    def buffered(self) -> bool:
        return self._returned is not None

    def return_frame(self, frame: bytes) -> None:
        """Let the next ``receive`` get ``frame``, which the engine has taken from the TAP."""
        self._returned = frame

    def return_error(self, error: int) -> None:
        """Let the next ``receive`` get this errno, which the engine has got from the TAP."""
        self._returned = error

    def close(self) -> None:
        os.close(self.fd)
        self.fd = -1

    def find_attached(self) -> None:
        """Ask whether the queue is attached, which an earlier process may have changed."""
        self._attached = tap.is_attached(self.fd)

    def receive(self, vectors: Sequence[memoryview]) -> int:
        try:
            if self._returned is not None:
                return self._receive_returned(vectors)
            return os.readv(self.fd, vectors)
        except OSError as error:
            if error.errno != errno.EBADFD:  # such as EINVAL, for segments of an unknown GSO type
                raise
            raise EndGoneError("the TAP was deleted") from error

    def _receive_returned(self, vectors: Sequence[memoryview]) -> int:
        frame, self._returned = self._returned, None
        if isinstance(frame, bytes):
            scatter(frame, vectors, 0)
            return len(frame)
        raise OSError(frame, os.strerror(frame or 0))

    def send(self, header: bytes, frame: Sequence[memoryview]) -> None:
        try:
            os.writev(self.fd, [header, *frame])
        except OSError as error:
            if error.errno == errno.EBADFD:
                raise EndGoneError("the TAP was deleted") from error
            raise

    def may_repeat(self, frame: Sequence[memoryview]) -> bool:
        """Any frame may repeat, as in every Ethernet."""
        return True

    def flush(self) -> None:
        """Do nothing: a TAP takes a frame whole or not at all."""

    def commit(self) -> bool:
        """Do nothing: a TAP keeps no frame that was read."""
        return False

    def set_offloads(self, flags: int) -> None:
        tap.set_offloads(self.fd, flags)

    def set_attached(self, *, attached: bool) -> None:
        if attached != self._attached:
            self._attached = attached
            tap.attach_queue(self.fd, attached=attached)
