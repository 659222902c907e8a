# SPDX-License-Identifier: BSD-3-Clause
"""The types of fields, and what is said about a field beside its type.

A field of the schema is ``name: Annotated[type, about("text")] = default``. Its name is the key in
JSON, and in an option unless ``about`` gives another one; the type has the range.
"""

# Without "from __future__ import annotations": msgspec would compile each annotation's text.

from typing import Annotated, Literal, TypeAlias

from msgspec import Meta, Struct

from sys_util.typing import Final

MAX_U64: Final = 0xFFFF_FFFF_FFFF_FFFF

# Keys of ``Meta.extra``.
CLI: Final = "cli"  # the key's name in an option; None: the key has no place in options
WORDS: Final = "words"  # the words of an option for the values of a Literal, in their order
NAMES: Final = "names"  # names of numbers that an option may have instead of the number
SIZE: Final = "size"  # a number of bytes, for which an option takes a suffix

# A bound above 2^63 - 1 cannot be given to msgspec. The parser of JSON and that of options make
# sure that a number fits 64 bits.
_U64_SCHEMA: Final = {"maximum": MAX_U64}

U8: TypeAlias = Annotated[int, Meta(ge=0, le=0xFF)]
U16: TypeAlias = Annotated[int, Meta(ge=0, le=0xFFFF)]
U32: TypeAlias = Annotated[int, Meta(ge=0, le=0xFFFF_FFFF)]
U64: TypeAlias = Annotated[int, Meta(ge=0, extra_json_schema=_U64_SCHEMA)]
I32: TypeAlias = Annotated[int, Meta(ge=-0x8000_0000, le=0x7FFF_FFFF)]
ByteSize: TypeAlias = Annotated[int, Meta(ge=0, extra_json_schema=_U64_SCHEMA, extra={SIZE: True})]


# Numbers of virtio's device types (virtio 1.3 §5).
DEVICE_TYPES: Final = {
    "net": 1,
    "block": 2,
    "console": 3,
    "rng": 4,
    "balloon": 5,
    "scsi": 8,
    "9p": 9,
    "gpu": 16,
    "input": 18,
    "vsock": 19,
    "crypto": 20,
    "mem": 24,
    "sound": 25,
    "fs": 26,
    "pmem": 27,
    "rpmb": 28,
    "video-encoder": 30,
    "video-decoder": 31,
    "scmi": 32,
    "i2c": 34,
    "can": 36,
    "gpio": 41,
}
DeviceType: TypeAlias = Annotated[int, Meta(ge=0, le=0xFFFF_FFFF, extra={NAMES: DEVICE_TYPES})]


def _words(*words: str) -> Meta:
    return Meta(extra={WORDS: words})


HotplugMethod: TypeAlias = Annotated[Literal["Acpi", "VirtioMem"], _words("acpi", "virtio-mem")]
CoreScheduling: TypeAlias = Annotated[Literal["Vm", "Vcpu", "Off"], _words("vm", "vcpu", "off")]
ImageType: TypeAlias = Annotated[
    Literal["FixedVhd", "Qcow2", "Raw", "Vhdx", "FlatVmdk", "Unknown"],
    _words("vhd", "qcow2", "raw", "vhdx", "vmdk", "unknown"),
]
LockGranularity: TypeAlias = Annotated[Literal["ByteRange", "Full"], _words("byte-range", "full")]
VhostMode: TypeAlias = Annotated[Literal["Client", "Server"], _words("client", "server")]
ConsoleMode: TypeAlias = Annotated[
    Literal["Off", "Pty", "Tty", "File", "Socket", "Null"],
    _words("off", "pty", "tty", "file", "socket", "null"),
]
RestoreMode: TypeAlias = Annotated[Literal["Copy", "OnDemand"], _words("copy", "ondemand")]
MigrationMode: TypeAlias = Annotated[Literal["Precopy", "Postcopy"], _words("precopy", "postcopy")]
TimeoutStrategy: TypeAlias = Annotated[Literal["Cancel", "Ignore"], _words("cancel", "ignore")]
VmState: TypeAlias = Literal["Created", "Running", "Shutdown", "Paused", "BreakPoint"]


def about(text: str) -> Meta:
    """Say what a field is. Its key in an option is its name."""
    return Meta(description=text)


def about_cli(text: str, key: str | None) -> Meta:
    """Say what a field is that is called ``key`` in an option, or has no key there (``None``)."""
    return Meta(description=text, extra={CLI: key})


class Record(Struct, frozen=True, kw_only=True):
    """The base of every object of the schema: unknown keys are ignored, values cannot change."""


class PciDevice(Record, frozen=True, kw_only=True):
    """What every PCI device has."""

    id: Annotated[str | None, about("name of the device; may not begin with __")] = None
    iommu: Annotated[bool, about("behind the virtual IOMMU")] = False
    pci_segment: Annotated[U16, about("PCI segment")] = 0
    pci_device_id: Annotated[U8 | None, about("slot in the segment, 1 to 31")] = None
