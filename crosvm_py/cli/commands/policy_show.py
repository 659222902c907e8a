# SPDX-License-Identifier: BSD-3-Clause
"""``crosvm policy show``: explain in words what a policy allows."""

from __future__ import annotations

from crosvm_py.cli.commands.policy_names import (
    ARCH,
    DEVICE_HELP,
    POLICY_DIR,
    named_policy,
    policy_names,
    printable_lines,
)
from crosvm_py.cli.grammar.command import Command
from crosvm_py.cli.grammar.options import Positional, switch
from crosvm_py.cli.output import write_out
from seccomp.syscalls import machine_arch
from sys_util.typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from crosvm_py.cli.grammar.command import GlobalSettings
    from crosvm_py.cli.grammar.options import Arguments

JSON: Final = switch("--json", "print JSON for programs, with every rule and every condition")


def _show(arguments: Arguments, _settings: GlobalSettings) -> int:
    from seccomp.explain import as_fields, as_lines, explain

    directory = arguments.get(POLICY_DIR)
    arch = arguments.get(ARCH) or machine_arch()
    if arguments.positional:
        names = [named_policy("show", device, directory, arch) for device in arguments.positional]
    else:
        names = policy_names(directory, arch)
    policies = [explain(name, directory=directory, arch=arch) for name in dict.fromkeys(names)]
    if arguments.has(JSON):
        import json

        write_out(json.dumps([as_fields(policy) for policy in policies], indent=2) + "\n")
        return 0
    texts = ["\n".join(as_lines(policy)) + "\n" for policy in policies]
    write_out(printable_lines("\n".join(texts)))
    return 0


SHOW: Final = Command(
    "policy show",
    "explain what policies allow",
    (ARCH, JSON, POLICY_DIR),
    (Positional("DEVICE", f"{DEVICE_HELP}; without any, all policies", 0, 64),),
    _show,
)
