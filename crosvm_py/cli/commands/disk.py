# SPDX-License-Identifier: BSD-3-Clause
"""``crosvm disk resize``: the disks of a VM that runs."""

from __future__ import annotations

from crosvm_py.cli.commands.asking import ask_for
from crosvm_py.cli.grammar.command import Command
from crosvm_py.cli.grammar.options import Positional, suggestion
from crosvm_py.cli.grammar.scanner import parse_number, parse_size
from crosvm_py.cli.output import write_error
from crosvm_py.control.devices import MAX_DISK_BYTES, DiskSize, ResizeDisk
from sys_util.errors import UsageError
from sys_util.typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from crosvm_py.cli.grammar.command import GlobalSettings
    from crosvm_py.cli.grammar.options import Arguments

MAX_INDEX: Final = 25
_SUBCOMMANDS: Final = ("resize",)


def _disk(arguments: Arguments, _settings: GlobalSettings) -> int:
    subcommand, index, size, path = arguments.positional
    if subcommand not in _SUBCOMMANDS:
        raise UsageError(f"disk: unknown {subcommand!r}{suggestion(subcommand, _SUBCOMMANDS)}")
    size_bytes = _size_bytes(size)
    answer = ask_for(path, ResizeDisk(_index(index), size_bytes), DiskSize)
    if answer.size_bytes != size_bytes:
        write_error(f"disk resize: {path}: a block device has its own size, {answer.size_bytes}")
    return 0


def _index(text: str) -> int:
    try:
        index = parse_number(text)
    except ValueError as error:
        raise UsageError(f"disk: INDEX {text!r}: {error}") from None
    if index > MAX_INDEX:
        raise UsageError(f"disk: INDEX {index} is not in 0..{MAX_INDEX}")
    return index


def _size_bytes(text: str) -> int:
    try:
        size_bytes = parse_size(text, 1)
    except ValueError as error:
        raise UsageError(f"disk: SIZE {text!r}: {error}") from None
    if not 1 <= size_bytes <= MAX_DISK_BYTES:
        raise UsageError(f"disk: SIZE {text}: {size_bytes} bytes is not in 1..{MAX_DISK_BYTES}")
    return size_bytes


DISK: Final = Command(
    "disk",
    "change the size of a disk: INDEX 0 is /dev/vda; SIZE in bytes or with a suffix k, m, g or t",
    (),
    Positional("resize INDEX SIZE SOCKET", "disk, its new size, control socket", 4, 4),
    _disk,
)
