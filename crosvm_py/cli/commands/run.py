# SPDX-License-Identifier: BSD-3-Clause
"""``crosvm run``."""

from __future__ import annotations

from crosvm_py.cli.grammar.command import Command
from crosvm_py.cli.grammar.options import Positional
from crosvm_py.cli.run_options.control import DRY_RUN, JSON
from crosvm_py.cli.run_options.run_config import GROUPS, OPTIONS, build_config
from crosvm_py.inherited import drop_inherited
from crosvm_py.tunables import run_without_huge_pages
from sys_util.errors import UsageError
from sys_util.typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from crosvm_py.cli.grammar.command import GlobalSettings
    from crosvm_py.cli.grammar.options import Arguments
    from crosvm_py.config import RunConfig


def _run(arguments: Arguments, settings: GlobalSettings) -> int:
    run_without_huge_pages()
    drop_inherited()
    config = build_config(arguments, extended_status=settings.extended_status)
    if arguments.has(DRY_RUN):
        return _print_plan(config, as_json=arguments.has(JSON))
    if arguments.has(JSON):
        raise UsageError("run: --json is for --dry-run")
    return run_config(config, settings)


def run_config(config: RunConfig, settings: GlobalSettings) -> int:
    """Run a VM from its start to its end and return the exit status.

    Raises:
        VmmError: it cannot be run.
    """
    from crosvm_py import log
    from crosvm_py.exit_status import exit_status
    from crosvm_py.run import run_vm

    syslog = log.configure(settings.syslog_tag if settings.syslog else None)
    return exit_status(run_vm(config, syslog), extended=config.extended_status)


def _print_plan(config: RunConfig, *, as_json: bool) -> int:
    from crosvm_py.cli.output import write_out
    from crosvm_py.end_signals import reset_inherited_signals
    from crosvm_py.run_plan import as_fields, plan_run

    reset_inherited_signals()
    plan = plan_run(config)
    if as_json:
        import json

        write_out(json.dumps(as_fields(plan), indent=2) + "\n")
    else:
        from crosvm_py.cli.commands.run_plan_text import as_text

        write_out(as_text(plan))
    return 0


COMMAND: Final = Command(
    "run",
    "boot a virtual machine",
    OPTIONS,
    (
        Positional(
            "KERNEL",
            "the kernel: an ELF vmlinux or a bzImage; or the folder of a guest, see crosvm help "
            "guest make. With --config the file may say it",
            at_least=0,
        ),
    ),
    _run,
    groups=GROUPS,
    details="The console of the guest is this terminal: Ctrl-A x leaves the guest, Ctrl-A h shows "
    "the other keys. In key=value lists the key in [brackets] may be left out, and a key alone "
    "is true. What the description of a guest's folder says comes before the options, which win.",
)
