# SPDX-License-Identifier: BSD-3-Clause
"""``crosvm coredump``: write the memory and the registers of a running VM into a file."""

from __future__ import annotations

import os

from crosvm_py.cli.commands.asking import SOCKET
from crosvm_py.cli.grammar.command import Command
from crosvm_py.cli.grammar.options import Positional
from crosvm_py.control import socket_client as client
from crosvm_py.requests.core_dump import DumpCore, path_fault
from sys_util.errors import UsageError
from sys_util.typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from crosvm_py.cli.grammar.command import GlobalSettings
    from crosvm_py.cli.grammar.options import Arguments

# For a terabyte on a slow disk; a VM that ends, ends the conversation.
_MAX_SECONDS: Final = 24 * 3600.0


def _dump(arguments: Arguments, _settings: GlobalSettings) -> int:
    path, vm = arguments.positional
    core = os.fsencode(os.path.abspath(path) if path else "")
    fault = path_fault(core)
    if fault:
        raise UsageError(f"coredump: {path:.200}: {fault}")
    client.ask(vm, DumpCore(core), timeout_seconds=_MAX_SECONDS)
    return 0


COMMAND: Final = Command(
    "coredump",
    "write the memory and the registers of a VM into a new ELF core file",
    (),
    (
        Positional("PATH", "the file, which must not exist; it is for your user alone"),
        SOCKET,
    ),
    _dump,
    examples=("crosvm coredump guest.core vm.sock",),
)
