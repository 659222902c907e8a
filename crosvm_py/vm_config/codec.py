# SPDX-License-Identifier: BSD-3-Clause
"""From JSON to objects of the schema, and back."""

from __future__ import annotations

import json

import msgspec

from crosvm_py.vm_config.complaint import complaint
from crosvm_py.vm_config.devices import DeviceConfig, NetConfig
from crosvm_py.vm_config.errors import SchemaError
from crosvm_py.vm_config.json_text import parse
from crosvm_py.vm_config.machine import PlatformConfig
from crosvm_py.vm_config.requests import RestoreConfig, VmReceiveMigrationData
from crosvm_py.vm_config.schema import VmConfig
from sys_util.errors import ProtocolError
from sys_util.stranger import judged
from sys_util.typing import TYPE_CHECKING, Final, TypeVar

if TYPE_CHECKING:
    from crosvm_py.vm_config.field_types import Record

R = TypeVar("R", bound="Record")

# Names of Cloud Hypervisor up to 51, and what they are called now.
_OLDER_NAMES: Final = {"serial_number": "system_serial_number", "uuid": "system_uuid"}

# A descriptor that a client named: its number means nothing in this process.
UNKNOWN_FD: Final = -1


def decode(text: bytes, kind: type[R], *, keep_fds: bool = False) -> R:
    """Return what a JSON text says.

    Numbers of descriptors are the client's. They become -1, except with ``keep_fds``: then the
    text was written by this program.

    Raises:
        SchemaError: the text is refused; no other exception is raised for any text.
    """
    try:
        made: R = judged(f"a JSON text for {kind.__name__}", _decode, text, kind, keep_fds)
    except ProtocolError as error:  # a bug of ours, which judged() has logged
        raise SchemaError("", str(error)) from None
    return made


def _decode(text: bytes, kind: type[R], keep_fds: bool) -> R:
    value = parse(text)
    _rename(value, kind)
    return built(value, kind) if keep_fds else _without_fds(built(value, kind))


def built(value: object, kind: type[R]) -> R:
    """Return the object for values as JSON has them: dict, list, str, int, bool, None.

    Raises:
        SchemaError: they do not fit.
    """
    try:
        return msgspec.convert(value, kind, strict=True)
    except msgspec.ValidationError as error:
        raise complaint(str(error), value, kind) from None


def encode(record: Record) -> bytes:
    """Return an object as JSON of ASCII characters alone; what is absent is left out."""
    return json.dumps(builtins(record), separators=(",", ":")).encode("ascii")


def encode_pretty(record: Record) -> str:
    """Return what ``encode`` returns, for people."""
    return json.dumps(builtins(record), indent=2)


def builtins(record: object) -> object:
    """Return an object as JSON has it, without what is absent."""
    return _present(msgspec.to_builtins(record))


def _present(value: object) -> object:
    if isinstance(value, dict):
        # iommu is left out when false in every device; VmConfig's own is always written.
        is_device = "pci_segment" in value
        return {
            key: _present(item)
            for key, item in value.items()
            if item is not None and not (is_device and key == "iommu" and item is False)
        }
    return [_present(item) for item in value] if isinstance(value, list | tuple) else value


def _rename(value: object, kind: type[Record]) -> None:
    """Give the platform's older keys their present names."""
    platform = value.get("platform") if kind is VmConfig and isinstance(value, dict) else None
    if not isinstance(platform, dict):
        return
    for old, new in _OLDER_NAMES.items():
        if old in platform and new in platform:
            raise SchemaError(f"platform.{old}", f"is the older name of {new}, which is there, too")
        if old in platform:
            platform[new] = platform.pop(old)


def _without_fds(record: R) -> R:
    """Return the object without a client's numbers of descriptors."""
    changed: Record = record
    if isinstance(record, VmConfig):
        changed = _forget_in_config(record)
    elif isinstance(record, NetConfig):
        changed = _forget_card(record)
    elif isinstance(record, DeviceConfig) and record.fd is not None:
        changed = msgspec.structs.replace(record, fd=UNKNOWN_FD)
    elif isinstance(record, RestoreConfig | VmReceiveMigrationData) and record.iommufd_fd:
        changed = msgspec.structs.replace(record, iommufd_fd=UNKNOWN_FD)
    return changed  # type: ignore[return-value]  # of the class of record


def _forget_card(card: NetConfig) -> NetConfig:
    if card.fds is None:
        return card
    return msgspec.structs.replace(card, fds=(UNKNOWN_FD,) * len(card.fds))


def _forget_in_config(config: VmConfig) -> VmConfig:
    changes: dict[str, object] = {}
    if config.net:
        changes["net"] = tuple(_without_fds(card) for card in config.net)
    if config.devices:
        changes["devices"] = tuple(_without_fds(device) for device in config.devices)
    platform: PlatformConfig | None = config.platform
    if platform is not None and platform.iommufd_fd is not None:
        changes["platform"] = msgspec.structs.replace(platform, iommufd_fd=UNKNOWN_FD)
    return msgspec.structs.replace(config, **changes) if changes else config
