# SPDX-License-Identifier: BSD-3-Clause
"""How a VM that runs is called and reached, on the command line."""

from __future__ import annotations

from crosvm_py.cli.grammar.options import OptionGroup, text_option
from sys_util.typing import Final

SOCKET: Final = text_option(
    "-s --socket",
    "PATH",
    "make a socket there for crosvm stop, devices and other commands; if PATH is a directory, "
    "it is called crosvm-PID.sock",
)
NAME: Final = text_option(
    "--name", "NAME", "name of the main process, as ps shows it", default="crosvm"
)

GROUP: Final = OptionGroup(
    "Control",
    (SOCKET, NAME),
    examples=("crosvm run -s vm.sock … ; crosvm stop vm.sock",),
)
