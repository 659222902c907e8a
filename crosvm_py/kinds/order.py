# SPDX-License-Identifier: BSD-3-Clause
"""The order for one device process: what the vmm asks for, and the warden makes it from."""

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

    With an empty ``name`` there is no broker. Otherwise the device's last descriptor is that
    directory. If the warden runs as root, the broker gets the ids of the directory's owner.
    """

    name: bytes
    uid: int
    gid: int


NO_CONNECTS: Final = Connects(b"", 0, 0)


class DeviceOrder(NamedTuple):
    """A device process to be made.

    Args:
        name: the name of the device, such as "block:0".
        kind: the name of its kind.
        spec: its packed Spec.
        fds: its own descriptors.
        max_file_bytes: the highest offset that it may write at in any file, 0 for none.
        connects: the sockets that its broker connects to.
        reopened: how many of the last descriptors have to be opened again for each process,
            because they serve only the first process that uses them.
        sockets: made in the file system for this device, and removed when the VM ends.
        source: what the device uses on the host, for people; the device is not told.
        limits: the rate limits at the start.
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


_NAME: Final = frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789_-:.@+")
MAX_NAME_CHARS: Final = 64


def is_device_name(name: str) -> bool:
    """Return whether a device may have this name: it is also the name of its cgroup.

    Names that begin with two underscores are kept for parts of the VM.
    """
    return (
        0 < len(name) <= MAX_NAME_CHARS
        and _NAME.issuperset(name)
        and name[:1] != "."
        and (name[:2] != "__")
    )


def pack_spec(spec: Message, **changes: object) -> bytes:
    """Return a Spec as it is sent to its device, with the fields in ``changes`` replaced."""
    return encode(replace(spec, **changes))


def unpack_spec(kind: type[T], packed: bytes) -> T:
    """Return the Spec that ``pack_spec`` packed.

    Raises:
        ProtocolError: it is no Spec of this kind.
    """
    spec = Codec((kind,)).decode(packed)
    if not isinstance(spec, kind):
        raise TypeError(f"{type(spec).__name__} is no {kind.__name__}")
    return spec
