# SPDX-License-Identifier: BSD-3-Clause
"""vsock on the command line: ``--vsock``, and crosvm's older ``--cid``."""

from __future__ import annotations

from crosvm_py.cli.grammar import keyvalue
from crosvm_py.cli.grammar.options import Option, OptionGroup
from sys_util.errors import ConfigError
from sys_util.typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from crosvm_py.cli.grammar.options import Arguments
    from devices.virtio.vsock.common import VsockSpec

# Lower addresses are for hypervisor, loopback and host; the highest one means any (§5.10.4).
MIN_CID: Final = 3
MAX_CID: Final = 0xFFFF_FFFE

_CID: Final = keyvalue.integer("cid", "the guest's address, 3 or higher", 0).needed()
_SOCKET: Final = keyvalue.string(
    "socket",
    "UNIX socket for programs of the host; without it they use AF_VSOCK, through /dev/vhost-vsock",
)
FIELDS: Final = (_CID, _SOCKET)


def _read_vsock(option: str, text: str) -> VsockSpec:
    return vsock_spec(option, keyvalue.parse(option, text, FIELDS))


def vsock_spec(option: str, values: keyvalue.Values) -> VsockSpec:
    """Return the device that the values of ``FIELDS`` describe.

    Raises:
        ConfigError: the address or the path cannot be.
    """
    from devices.virtio.vsock.common import VsockSpec

    cid, path = values[_CID], values[_SOCKET]
    if not MIN_CID <= cid <= MAX_CID:
        raise ConfigError(f"{option}: cid {cid} is not in {MIN_CID}..{MAX_CID}")
    if path == "":
        raise ConfigError(f"{option}: the path of the socket is empty")
    return VsockSpec(cid, path)


VSOCK: Final = Option(
    "--vsock",
    "CID[,socket=PATH]",
    "connections between programs of the host and of the guest",
    _read_vsock,
    fields=FIELDS,
)
CID: Final = Option("--cid", "CID", "the same as --vsock CID", _read_vsock)
OPTIONS: Final[tuple[Option[VsockSpec], ...]] = (VSOCK, CID)
GROUP: Final = OptionGroup(
    "Sockets between host and guest (vsock)",
    OPTIONS,
    examples=("crosvm run --vsock cid=3,socket=/run/vm/v.sock vmlinux",),
)


def vsock(arguments: Arguments) -> VsockSpec | None:
    """Return the vsock device that the user asked for, if any.

    Raises:
        ConfigError: both options are given.
    """
    specs = tuple(arguments.every(*OPTIONS))
    if len(specs) > 1:
        raise ConfigError("--vsock and --cid exclude each other")
    return specs[0] if specs else None
