# SPDX-License-Identifier: BSD-3-Clause
"""``crosvm policy simulate``: tell what a policy would do with one system call, and why."""

from __future__ import annotations

from crosvm_py.cli.commands.policy_names import (
    ARCH,
    DEVICE_HELP,
    POLICY_DIR,
    named_policy,
    printable_lines,
)
from crosvm_py.cli.grammar.command import Command
from crosvm_py.cli.grammar.options import Positional
from crosvm_py.cli.output import write_error, write_out
from seccomp.errors import PolicyError
from seccomp.syscalls import machine_arch
from sys_util.errors import UsageError, describe
from sys_util.typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from crosvm_py.cli.grammar.command import GlobalSettings
    from crosvm_py.cli.grammar.options import Arguments

EXIT_DENIED: Final = 1
EXIT_NO_POLICY: Final = 2


def _simulate(arguments: Arguments, _settings: GlobalSettings) -> int:
    from seccomp.explain import consequence, decide, explain

    device, call, *words = arguments.positional
    directory = arguments.get(POLICY_DIR)
    arch = arguments.get(ARCH) or machine_arch()
    name = named_policy("simulate", device, directory, arch)
    try:
        policy = explain(name, directory=directory, arch=arch)
    except PolicyError as error:
        write_error(f"policy simulate: {describe(error)}")
        return EXIT_NO_POLICY
    try:
        decision = decide(policy, call, words)
    except PolicyError as error:
        raise UsageError(f"policy simulate: {error}") from None
    allowed = decision.action.kind == "allow"
    verdict = "allowed" if allowed else f"denied, {consequence(decision.action)}"
    lines = [f"{decision.call}: {verdict}", *(f"  {reason}" for reason in decision.reasons)]
    write_out(printable_lines("\n".join(lines)) + "\n")
    return 0 if allowed else EXIT_DENIED


SIMULATE: Final = Command(
    "policy simulate",
    "tell what a policy does with a call, and which rule says so",
    (ARCH, POLICY_DIR),
    (
        Positional("DEVICE", DEVICE_HELP),
        Positional("SYSCALL", "name of the system call, such as ioctl"),
        Positional(
            "ARG",
            "up to six numbers or constants such as PROT_READ|PROT_WRITE; 0 where left out",
            0,
            6,
        ),
    ),
    _simulate,
    examples=(
        "crosvm policy simulate vmm ioctl 3 KVM_CREATE_VM",
        "crosvm policy simulate block -- lseek 3 -1",
    ),
    details="The exit status is 0 for allowed, 1 for denied, 2 for a policy that cannot be used, "
    "and 35 for words that cannot be read. Write -- before a negative number.",
)
