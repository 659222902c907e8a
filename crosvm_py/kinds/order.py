# SPDX-License-Identifier: BSD-3-Clause
"""What one device process is made from; the vmm and the warden read it the same way."""

from __future__ import annotations

from devices.virtio.rate_limiter import RateLimits
from sys_util.facts import replace
from sys_util.typing import TYPE_CHECKING, Final, NamedTuple, TypeVar
from sys_util.wire import Codec, encode

if TYPE_CHECKING:
    from crosvm_py.socket_path import BoundSocket
    from sys_util.wire import Message

    T = TypeVar("T", bound=Message)


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
    each process, since they belong to the first that uses them. ``sockets`` were made in the file
    system for it, and go away with the VM. ``source`` says for people what of the host is behind
    the device, which never learns it; ``limits`` what limits it begins with.
    """

    name: str
    kind: str
    spec: bytes
    fds: tuple[int, ...]
    max_file_bytes: int
    connects: Connects = NO_CONNECTS
    reopened: int = 0
    sockets: tuple[BoundSocket, ...] = ()
    source: str = ""
    limits: RateLimits = RateLimits()


def pack_spec(spec: Message, **changes: object) -> bytes:
    """Return a Spec as it crosses to its device, with other values in the fields named here."""
    return encode(replace(spec, **changes))


def unpack_spec(kind: type[T], packed: bytes) -> T:
    """Return the Spec that ``pack_spec`` packed.

    Raises:
        ProtocolError: it is none of this kind.
    """
    spec = Codec((kind,)).decode(packed)
    if not isinstance(spec, kind):
        raise TypeError(f"{type(spec).__name__} is no {kind.__name__}")
    return spec
