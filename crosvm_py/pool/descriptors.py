# SPDX-License-Identifier: BSD-3-Clause
"""Give a monitor the descriptors of its client, each with the number that it has there."""

from __future__ import annotations

import fcntl
import os

from crosvm_py.pool.caller import DeclinedError
from sys_util import linux
from sys_util.typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

_STDIO: Final = 3


def install(numbers: Sequence[int], received: Sequence[int], own: Iterable[int]) -> dict[int, int]:
    """Move each of ``received`` to its number, and our own out of the way; close all others.

    Return the new number of each of ``own``.

    Raises:
        DeclinedError: the numbers make no sense, or we may not have such high ones.
    """
    if len(numbers) != len(received) or len(set(numbers)) != len(numbers):
        raise DeclinedError("it got other descriptors than the client announced")
    first_free = max(_STDIO, *numbers, *received, *own) + 1 if numbers else _STDIO
    try:
        moved = {fd: fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, first_free) for fd in own}
        sources = [fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, first_free) for fd in received]
        linux.close_all_fds_except({*moved.values(), *sources})
        for source, number in zip(sources, numbers, strict=True):
            os.dup2(source, number, inheritable=True)
            os.close(source)
    except OSError as error:
        raise DeclinedError(f"it cannot have the client's descriptors: {error.strerror}") from error
    return moved
