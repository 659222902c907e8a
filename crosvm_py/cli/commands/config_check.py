# SPDX-License-Identifier: BSD-3-Clause
"""``crosvm config check``: say whether a configuration file can run here; open nothing else."""

from __future__ import annotations

from crosvm_py.cli.grammar.command import Command
from crosvm_py.cli.grammar.options import Positional, switch
from crosvm_py.cli.output import write_out
from crosvm_py.cli.run_options.config_file import parse_file
from crosvm_py.exit_status import VmExit
from sys_util.log import printable
from sys_util.typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from crosvm_py.cli.grammar.command import GlobalSettings
    from crosvm_py.cli.grammar.options import Arguments
    from crosvm_py.vm_config.problem import Problem

JSON: Final = switch(
    "--json",
    "print an object for programs: problems, of which each has place, text and the status code of "
    "Cloud Hypervisor's API, and lines of what is ignored",
)


def _check(arguments: Arguments, _settings: GlobalSettings) -> int:
    found, without_effect = _look_at(arguments.positional[0])
    if arguments.has(JSON):
        import json

        rows = [problem._asdict() for problem in found]
        write_out(json.dumps({"problems": rows, "ignored": without_effect}, indent=2) + "\n")
    else:
        lines = [printable(problem.message()) for problem in found]
        lines += [printable(line) for line in without_effect]
        write_out("".join(f"{line}\n" for line in lines))
    return int(VmExit.ERROR if found else VmExit.STOPPED)


def _look_at(path: str) -> tuple[list[Problem], list[str]]:
    """Return what keeps the VM of a file from running here, and what has no effect."""
    from crosvm_py.vm_config.errors import SchemaError

    try:
        config = parse_file("config check", path)
    except SchemaError as error:
        from crosvm_py.vm_config.problem import Problem

        return [Problem(error.place, error.reason)], []
    from crosvm_py.vm_config.to_run import all_problems
    from crosvm_py.vm_config.unsupported import ignored

    return all_problems(config), ignored(config)


CHECK: Final = Command(
    "config check",
    "say what keeps the VM of a configuration file from running here",
    (JSON,),
    (Positional("FILE", "a configuration file, as for crosvm run --config"),),
    _check,
    examples=("crosvm config check vm.json && crosvm run --config vm.json",),
    details="The exit status is 0 if nothing does. Files that the configuration names are not "
    "looked at; crosvm run --dry-run does that.",
)
