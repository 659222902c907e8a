# SPDX-License-Identifier: BSD-3-Clause
"""Record system calls: a filter asks another process about each one (seccomp_unotify(2)).

The process under the filter waits until the other process, the recorder, has answered
(SECCOMP_RET_USER_NOTIF). This does not protect anything: memory that a pointer argument points to
can change after the recorder has allowed the call.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import struct

from sys_util._linux import ffi, lib
from sys_util.typing import TYPE_CHECKING, Final, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Sequence

# The filter allows calls that have this number as their sixth argument. These are the calls that
# send the listener to the recorder, none of which uses that argument.
MARK: Final = 0x63726F73766D2D31

# <linux/seccomp.h>; the structures are the same on every 64-bit architecture.
_NOTIFICATION: Final = struct.Struct("=QIIiIQ6Q")  # struct seccomp_notif with seccomp_data
_ANSWER: Final = struct.Struct("=QqiI")  # struct seccomp_notif_resp
_NOTIF_RECV: Final = 0xC0502100
_NOTIF_SEND: Final = 0xC0182101
_NOTIF_SET_FLAGS: Final = 0x40082104
_SYNC_WAKE_UP: Final = 1
_FLAG_CONTINUE: Final = 1
_SOCK_FILTER_BYTES: Final = 8


class Notification(NamedTuple):
    """A call that waits for an answer, the process that makes it, and its arguments."""

    id: int
    pid: int
    number: int
    args: Sequence[int]


class Listener:
    """The recorder's end of a filter. Owns its descriptor."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        with contextlib.suppress(OSError):  # before Linux 6.6 answers are slower
            fcntl.ioctl(fd, _NOTIF_SET_FLAGS, _SYNC_WAKE_UP)

    def fileno(self) -> int:
        """Return the descriptor to poll: readable if a call waits, hung up if nobody is left."""
        return self._fd

    def receive(self) -> Notification | None:
        """Take a call that poll(2) has announced; ``None`` if it was interrupted meanwhile."""
        buffer = bytearray(_NOTIFICATION.size)  # the kernel demands zeros
        try:
            fcntl.ioctl(self._fd, _NOTIF_RECV, buffer)
        except OSError:
            return None
        request_id, pid, _flags, number, _arch, _ip, *args = _NOTIFICATION.unpack(buffer)
        return Notification(request_id, pid, number, args)

    def let_go_on(self, request_id: int) -> None:
        """Let the kernel carry out the call; do nothing if its process has ended."""
        self._answer(_ANSWER.pack(request_id, 0, 0, _FLAG_CONTINUE))

    def refuse(self, request_id: int, error: int) -> None:
        """Let the call fail with the errno ``error``; do nothing if its process has ended."""
        self._answer(_ANSWER.pack(request_id, 0, -error, 0))

    def close(self) -> None:
        """Close the listener: every later call under the filter fails with ENOSYS."""
        os.close(self._fd)

    def _answer(self, answer: bytes) -> None:
        with contextlib.suppress(OSError):
            fcntl.ioctl(self._fd, _NOTIF_SEND, answer)


def load_recording_filter(
    bpf: bytes, recorder: int, name: str, *, all_threads: bool = False
) -> None:
    """Load a filter into this thread and those that it starts; send its listener to ``recorder``.

    With ``all_threads`` also into every other thread of the process, as Linux 5.7 can.
    ``recorder`` is a SOCK_SEQPACKET socket, which this closes. The message with the listener is
    ``name``. The filter must allow calls that have ``MARK`` as their sixth argument.
    """
    result = lib.crosvm_load_recording_filter(
        ffi.from_buffer(bpf),
        len(bpf) // _SOCK_FILTER_BYTES,
        recorder,
        name.encode(),
        len(name.encode()),
        MARK,
        all_threads,
    )
    if result < 0:
        raise OSError(-result, os.strerror(-result))
