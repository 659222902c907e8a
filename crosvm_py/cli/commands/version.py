# SPDX-License-Identifier: BSD-3-Clause
"""``crosvm version``."""

from __future__ import annotations

from crosvm_py.cli.grammar.command import Command
from crosvm_py.cli.grammar.options import NO_ARGUMENTS
from crosvm_py.cli.output import write_out
from crosvm_py.version import VERSION_LINE
from sys_util.typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from crosvm_py.cli.grammar.command import GlobalSettings
    from crosvm_py.cli.grammar.options import Arguments


def _version(_arguments: Arguments, _settings: GlobalSettings) -> int:
    write_out(VERSION_LINE)
    return 0


COMMAND: Final = Command("version", "print the version", (), NO_ARGUMENTS, _version)
