# SPDX-License-Identifier: BSD-3-Clause
"""What one device process is made from; the vmm and the warden read it the same way."""

from __future__ import annotations

import msgpack

from sys_util.facts import fields_of
from sys_util.typing import Final, NamedTuple

# For a kind whose configuration has no field to which each write is output.
NO_OUTPUT: Final = -1


class Connects(NamedTuple):
    """Which sockets of the host a device's broker connects to: ``<name>_<port>`` in a directory.

    Without ``name`` there is no broker. The last descriptor of the device is that directory then,
    and the broker of a warden of root has the ids of its owner.
    """

    name: bytes
    uid: int
    gid: int


NO_CONNECTS: Final = Connects(b"", 0, 0)


class DeviceOrder(NamedTuple):
    """A device process to be made: its name and kind, its packed Spec, its descriptors.

    ``max_file_bytes`` is the highest offset it may write at in any file, 0 for none. ``connects``:
    the sockets for which its broker is asked. The last ``reopened`` descriptors are opened anew for
    each process, since they belong to the first that uses them. ``source`` says for people what of
    the host is behind the device, which never learns it.
    """

    name: str
    kind: str
    spec: bytes
    fds: tuple[int, ...]
    max_file_bytes: int
    connects: Connects = NO_CONNECTS
    reopened: int = 0
    source: str = ""


def pack_spec(spec: object, **extra: object) -> bytes:
    """Pack the fields of a frozen Spec, and what else the device is built from."""
    return msgpack.packb(fields_of(spec) | extra)
