# SPDX-License-Identifier: BSD-3-Clause
"""Call KVM's ioctls. If the kernel refuses one, raise a ``HostError`` that names the request."""

from __future__ import annotations

import os

from kvm._kvm import lib
from sys_util.errors import raise_host_error
from sys_util.typing import TYPE_CHECKING

if TYPE_CHECKING:
    from typing import NoReturn

    from kvm._kvm import CData


def refuse(operation: str, target: str, errno: int, hint: str = "") -> NoReturn:
    """Raise ``HostError`` for a request that failed with ``errno``."""
    raise_host_error(operation, target, OSError(errno, os.strerror(errno)), hint)


def ioctl(fd: int, request: int, arg: CData, operation: str, target: str = "on the VM") -> int:
    """Call ioctl(2) with a pointer and return its result.

    Raises:
        HostError: the kernel refused.
    """
    result = lib.crosvm_ioctl(fd, request, arg)
    if result < 0:
        refuse(operation, target, -result)
    return result


def ioctl_int(fd: int, request: int, arg: int, operation: str, target: str = "on the VM") -> int:
    """Call ioctl(2) with a number and return its result.

    Raises:
        HostError: the kernel refused.
    """
    result = lib.crosvm_ioctl_int(fd, request, arg)
    if result < 0:
        refuse(operation, target, -result)
    return result
