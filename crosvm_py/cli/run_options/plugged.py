# SPDX-License-Identifier: BSD-3-Clause
"""Devices that are plugged into a running VM: as the options of ``run``, with two keys more."""

from __future__ import annotations

from crosvm_py.cli.grammar import keyvalue
from crosvm_py.cli.run_options import disks, limits, net, vsock
from devices.virtio.rng.device import RngSpec
from sys_util.errors import ConfigError, UsageError
from sys_util.typing import TYPE_CHECKING, Final, NamedTuple

if TYPE_CHECKING:
    from crosvm_py.config import NetworkSpec
    from devices.virtio.block.spec import BlockSpec
    from devices.virtio.vsock.common import VsockSpec

_DEVICE: Final = keyvalue.string("device", "its name in crosvm devices; by default a free one")
_SLOT: Final = keyvalue.integer("pci-slot", "1 to 31; by default the lowest free one", 0, shown="")
_SEGMENT: Final = keyvalue.integer("pci-segment", "0, or one that the VM has", 0)

_OWN: Final = (_DEVICE, _SLOT, _SEGMENT)
DISK_FIELDS: Final = (*disks.PLUGGED_FIELDS, *_OWN)
NET_FIELDS: Final = (*net.FIELDS, *_OWN)
VSOCK_FIELDS: Final = (*vsock.FIELDS, *_OWN)
RNG_FIELDS: Final = (*limits.FIELDS, *_OWN)


class Place(NamedTuple):
    """Where a device goes: its name, or "", its PCI slot, or ``None``, and its PCI segment."""

    id: str
    slot: int | None
    segment: int


def read_disk(option: str, text: str) -> tuple[BlockSpec, Place]:
    """Read the value of ``disk=``.

    Raises:
        UsageError: a key or a value is wrong.
    """
    values = keyvalue.parse(option, text, DISK_FIELDS)
    return disks.plugged_spec(option, values), _place(option, values)


def read_net(option: str, text: str) -> tuple[NetworkSpec, Place]:
    """Read the value of ``net=``.

    Raises:
        UsageError, ConfigError: a key or a value is wrong, or it is no TAP.
    """
    values = keyvalue.parse(option, text, NET_FIELDS)
    spec = net.net_spec(option, text, values)
    if spec.user:
        raise ConfigError(
            f"{option}: passt cannot be started for a running VM, where nobody executes a program; "
            "it needs a new start of the VM"
        )
    if spec.tap_fds:
        raise ConfigError(f"{option}: descriptors come with vm.add-net of the API alone")
    return spec, _place(option, values)


def read_vsock(option: str, text: str) -> tuple[VsockSpec, Place]:
    """Read the value of ``vsock=``.

    Raises:
        UsageError, ConfigError: a key or a value is wrong, or there is no socket.
    """
    values = keyvalue.parse(option, text, VSOCK_FIELDS)
    spec = vsock.vsock_spec(option, values)
    if spec.socket is None:
        raise ConfigError(
            f"{option}: it needs socket=PATH; the vsock of the host's kernel needs a new start"
        )
    return spec, _place(option, values)


def read_rng(option: str, text: str) -> tuple[RngSpec, Place]:
    """Read the value of ``rng=``; it may be empty.

    Raises:
        UsageError: a key or a value is wrong.
    """
    values = keyvalue.parse(option, text, RNG_FIELDS) if text else keyvalue.Values()
    return RngSpec(limits=limits.limits(option, values)), _place(option, values)


def _place(option: str, values: keyvalue.Values) -> Place:
    slot = values[_SLOT] if _SLOT in values else None  # noqa: SIM401 - it is no dict
    if slot is not None and not 0 <= slot <= 255:
        raise UsageError(f"{option}: pci-slot={slot}: slots for devices are 1..31")
    segment = values[_SEGMENT]
    if not 0 <= segment < 1 << 16:
        raise UsageError(f"{option}: pci-segment={segment}: segments are 0..65535")
    return Place(values[_DEVICE] or "", slot, segment)
