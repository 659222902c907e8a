# SPDX-License-Identifier: BSD-3-Clause
"""``crosvm run``."""

from __future__ import annotations

from crosvm_py.cli.grammar.command import Command
from crosvm_py.cli.grammar.options import Positional
from crosvm_py.cli.run_options.run_config import GROUPS, OPTIONS, build_config
from crosvm_py.tunables import leave_huge_pages
from sys_util.typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from crosvm_py.cli.grammar.command import GlobalSettings
    from crosvm_py.cli.grammar.options import Arguments


def _run(arguments: Arguments, settings: GlobalSettings) -> int:
    leave_huge_pages()
    config = build_config(arguments, extended_status=settings.extended_status)
    from crosvm_py import log
    from crosvm_py.exit_status import exit_status
    from crosvm_py.run import run_vm

    log.configure(settings.syslog_tag if settings.syslog else None)
    return exit_status(run_vm(config), extended=config.extended_status)


COMMAND: Final = Command(
    "run",
    "boot a virtual machine",
    OPTIONS,
    (Positional("KERNEL", "the kernel: an ELF vmlinux or a bzImage"),),
    _run,
    groups=GROUPS,
    details="The console of the guest is this terminal: Ctrl-A x leaves the guest, Ctrl-A h shows "
    "the other keys. In key=value lists the key in [brackets] may be left out, and a key alone "
    "is true.",
)
