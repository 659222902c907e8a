# SPDX-License-Identifier: BSD-3-Clause
"""Simple requests to running VMs: ``stop``, ``suspend``, ``resume``, ``reboot``, ``powerbtn``."""

from __future__ import annotations

from crosvm_py.cli.commands.asking import SOCKETS
from crosvm_py.cli.grammar.command import Command
from crosvm_py.cli.output import write_error
from crosvm_py.control import socket_client as client
from crosvm_py.requests.life import PowerButton, Reboot, Resume, Stop, Suspend
from crosvm_py.requests.protocol import Request
from sys_util.errors import VmmError, describe
from sys_util.typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from crosvm_py.cli.grammar.command import GlobalSettings
    from crosvm_py.cli.grammar.options import Arguments


def _command(name: str, summary: str, request: Request, *, until_gone: bool = False) -> Command:
    def run(arguments: Arguments, _settings: GlobalSettings) -> int:
        failed = False
        for path in arguments.positional:
            try:
                client.ask(path, request, until_gone=until_gone)
            except VmmError as error:
                write_error(f"{name}: {describe(error)}")
                failed = True
        return 1 if failed else 0

    return Command(name, summary, (), (SOCKETS,), run)


STOP: Final = _command(
    "stop", "end VMs at once, and wait until they are gone", Stop(), until_gone=True
)
SUSPEND: Final = _command("suspend", "hold VMs still", Suspend())
RESUME: Final = _command("resume", "let VMs go on that were suspended", Resume())
REBOOT: Final = _command(
    "reboot", "reset VMs that were started with --reboot: their guests boot again", Reboot()
)
POWERBTN: Final = _command(
    "powerbtn", "press the power button of VMs (ACPI): the guest shuts down", PowerButton()
)
