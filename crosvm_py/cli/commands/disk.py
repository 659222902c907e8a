# SPDX-License-Identifier: BSD-3-Clause
"""``crosvm disk resize``: resize a disk of a running VM."""

from __future__ import annotations

from crosvm_py.cli.commands.asking import SOCKET, ask_for
from crosvm_py.cli.grammar.command import Command, command_group
from crosvm_py.cli.grammar.options import Positional
from crosvm_py.cli.grammar.scanner import parse_number, parse_size
from crosvm_py.cli.output import write_error
from crosvm_py.requests.devices import MAX_DISK_BYTES, ResizeDisk
from devices.virtio.commands import DiskSize
from sys_util.errors import UsageError
from sys_util.typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from crosvm_py.cli.grammar.command import GlobalSettings
    from crosvm_py.cli.grammar.options import Arguments

MAX_INDEX: Final = 25


def _resize(arguments: Arguments, _settings: GlobalSettings) -> int:
    index, size, path = arguments.positional
    size_bytes = _size_bytes(size)
    answer = ask_for(path, ResizeDisk(_index(index), size_bytes), DiskSize)
    if answer.size_bytes != size_bytes:
        write_error(f"disk resize: {path}: a block device has its own size, {answer.size_bytes}")
    return 0


def _index(text: str) -> int:
    try:
        index = parse_number(text)
    except ValueError as error:
        raise UsageError(f"disk resize: INDEX {text!r}: {error}") from None
    if index > MAX_INDEX:
        raise UsageError(f"disk resize: INDEX {index} is not in 0..{MAX_INDEX}")
    return index


def _size_bytes(text: str) -> int:
    try:
        size_bytes = parse_size(text, 1)
    except ValueError as error:
        raise UsageError(f"disk resize: SIZE {text!r}: {error}") from None
    if not 1 <= size_bytes <= MAX_DISK_BYTES:
        limits = f"1..{MAX_DISK_BYTES}"
        raise UsageError(f"disk resize: SIZE {text}: {size_bytes} bytes is not in {limits}")
    return size_bytes


RESIZE: Final = Command(
    "disk resize",
    "change the size of a disk, which the guest sees at once",
    (),
    (
        Positional("INDEX", "number of the disk: 0 is /dev/vda, 1 is /dev/vdb"),
        Positional("SIZE", "its new size: bytes, or a number with a suffix k, m, g or t"),
        SOCKET,
    ),
    _resize,
    examples=("crosvm disk resize 0 20g vm.sock",),
)
DISK: Final = command_group(
    "disk", "change disks", {"resize": "crosvm_py.cli.commands.disk:RESIZE"}
)
