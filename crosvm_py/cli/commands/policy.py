# SPDX-License-Identifier: BSD-3-Clause
"""``crosvm policy show`` and ``crosvm policy simulate``: what a filter will decide, and why."""

from __future__ import annotations

from crosvm_py.cli.commands.policy_names import policy_name, policy_names
from crosvm_py.cli.grammar.command import Command
from crosvm_py.cli.grammar.options import NO_ARGUMENTS, Option, Positional, switch, text_option
from crosvm_py.cli.output import write_error, write_out
from seccomp.errors import PolicyError
from seccomp.syscalls import ARCHITECTURES, machine_arch
from sys_util.errors import UsageError, describe
from sys_util.log import printable
from sys_util.typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from crosvm_py.cli.grammar.command import GlobalSettings
    from crosvm_py.cli.grammar.options import Arguments

EXIT_DENIED: Final = 1
EXIT_NO_POLICY: Final = 2


def _read_arch(option: str, text: str) -> str:
    if text not in ARCHITECTURES:
        raise UsageError(f"{option}: {text!r:.40} is none of {', '.join(ARCHITECTURES)}")
    return text


ARCH: Final = Option("--arch", "ARCH", "x86_64 or aarch64 (this machine's)", _read_arch)
JSON: Final = switch("--json", "for programs: every rule and every condition")
POLICY_DIR: Final = text_option(
    "--policy-dir", "DIR", "read the policies there, not those that are built in"
)
_DEVICE_HELP: Final = (
    "device such as block, net:0 or vhost-vsock, or policy such as block_device or vmm"
)


def _show(arguments: Arguments, _settings: GlobalSettings) -> int:
    from seccomp.explain import as_fields, as_lines, explain

    directory = arguments.get(POLICY_DIR)
    arch = arguments.get(ARCH) or machine_arch()
    if arguments.positional:
        names = [_named("show", device, directory, arch) for device in arguments.positional]
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


def printable_lines(text: str) -> str:
    """Return ``text`` without what a terminal would obey; policies may be anybody's."""
    return "\n".join(printable(line) for line in text.split("\n"))


def _named(command: str, device: str, directory: str | None, arch: str) -> str:
    try:
        return policy_name(device, directory, arch)
    except UsageError as error:
        raise UsageError(f"policy {command}: {error}") from None


def _simulate(arguments: Arguments, _settings: GlobalSettings) -> int:
    from seccomp.explain import consequence, decide, explain

    device, call, *words = arguments.positional
    directory = arguments.get(POLICY_DIR)
    arch = arguments.get(ARCH) or machine_arch()
    name = _named("simulate", device, directory, arch)
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


SHOW: Final = Command(
    "policy show",
    "explain what a policy allows, of every policy without DEVICE",
    (ARCH, JSON, POLICY_DIR),
    Positional("DEVICE", _DEVICE_HELP, 0, 64),
    _show,
)
SIMULATE: Final = Command(
    "policy simulate",
    "tell what a policy does with a call, and which rule says so",
    (ARCH, POLICY_DIR),
    Positional(
        "DEVICE SYSCALL [ARG…]",
        f"{_DEVICE_HELP}; call; up to six numbers or constants such as PROT_READ|PROT_WRITE, 0 "
        "where left out, after -- if one is negative. The exit status is 0 for allowed, 1 for "
        "denied, 2 for a policy that cannot be used, 35 for words that cannot be read",
        2,
        8,
    ),
    _simulate,
)


def _load_record() -> Command:
    from crosvm_py.cli.commands.policy_record import RECORD

    return RECORD


def _none(_arguments: Arguments, _settings: GlobalSettings) -> int:
    raise UsageError("policy: what of it? record, show or simulate")


POLICY: Final = Command(
    "policy",
    "record, explain and try out seccomp policies",
    (),
    NO_ARGUMENTS,
    _none,
    {"record": _load_record, "show": lambda: SHOW, "simulate": lambda: SIMULATE},
)
