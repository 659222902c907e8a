# SPDX-License-Identifier: BSD-3-Clause
"""Requests that come with descriptors: ``--restore``, ch-remote's restore, receive-migration."""

from __future__ import annotations

from msgspec import structs

from crosvm_py.vm_config.errors import SchemaError
from crosvm_py.vm_config.field_types import I32
from crosvm_py.vm_config.option_grammar import keys, parse_option
from crosvm_py.vm_config.option_split import items, pairs, plain, split
from crosvm_py.vm_config.option_values import read
from crosvm_py.vm_config.requests import (
    RestoreConfig,
    RestoredNetConfig,
    RestoredVfioConfig,
    VmReceiveMigrationData,
)
from sys_util.typing import TYPE_CHECKING, Final, TypeVar

if TYPE_CHECKING:
    from crosvm_py.vm_config.field_types import Record

R = TypeVar("R", RestoreConfig, VmReceiveMigrationData)

_WITH_FDS: Final = ("net_fds", "vfio_fds")


def parse_restore(option: str, text: str) -> tuple[RestoreConfig, tuple[int, ...]]:
    """Return the request, and the descriptors in the order in which it takes them.

    ``net_fds=[ID@[FD,…],…]``, ``vfio_fds=[ID@FD,…]`` and ``iommufd_fd=FD`` name descriptors of
    the caller. The request says only how many there are.

    Raises:
        SchemaError: names the option and the key.
    """
    nets, net_fds = _nets(f"{option} net_fds", _key(option, text, RestoreConfig, "net_fds"))
    request, fds = _parse(option, text, RestoreConfig)
    return structs.replace(request, net_fds=nets or None), (*net_fds, *fds)


def parse_receive(option: str, text: str) -> tuple[VmReceiveMigrationData, tuple[int, ...]]:
    """Return the request, and the descriptors that it takes: ``vfio_fds`` and ``iommufd_fd``.

    Raises:
        SchemaError: names the option and the key.
    """
    return _parse(option, text, VmReceiveMigrationData)


def _key(option: str, text: str, kind: type[Record], key: str) -> str:
    return pairs(option, text, tuple(keys(kind))).get(key) or ""


def _parse(option: str, text: str, kind: type[R]) -> tuple[R, tuple[int, ...]]:
    vfio, fds = _vfio(f"{option} vfio_fds", _key(option, text, kind, "vfio_fds"))
    given = pairs(option, text, tuple(keys(kind)))
    rest = ",".join(f"{key}={value}" for key, value in given.items() if key not in _WITH_FDS)
    request = parse_option(option, rest, kind)
    if request.iommufd_fd is not None:
        fds.append(request.iommufd_fd)
    return structs.replace(request, vfio_fds=vfio or None), tuple(fds)


def _nets(place: str, text: str) -> tuple[tuple[RestoredNetConfig, ...], list[int]]:
    nets: list[RestoredNetConfig] = []
    found: list[int] = []
    for item in items(place, text):
        name, _, fds = item.partition("@")
        numbers = [_fd(place, fd) for fd in items(place, fds)]
        nets.append(RestoredNetConfig(id=_name(place, item, name), num_fds=len(numbers)))
        found += numbers
    return tuple(nets), found


def _vfio(place: str, text: str) -> tuple[tuple[RestoredVfioConfig, ...], list[int]]:
    devices: list[RestoredVfioConfig] = []
    found: list[int] = []
    for item in items(place, text):
        parts = split(place, item, "@")
        if len(parts) != 2:
            raise SchemaError(place, f"{plain(item)!r:.40} is not ID@FD")
        devices.append(RestoredVfioConfig(id=_name(place, item, parts[0])))
        found.append(_fd(place, parts[1]))
    return tuple(devices), found


def _name(place: str, item: str, name: str) -> str:
    if not plain(name) or "@" not in item:
        raise SchemaError(place, f"{plain(item)!r:.40} is not ID@[FD,…]")
    return plain(name)


def _fd(place: str, text: str) -> int:
    number = read(place, text, I32)
    if not isinstance(number, int) or number < 0:
        raise SchemaError(place, f"{plain(text)!r:.40} is not a descriptor")
    return number
