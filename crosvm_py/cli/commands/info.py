# SPDX-License-Identifier: BSD-3-Clause
"""``crosvm info``: what a running VM is and has: state, vCPUs, processes, devices."""

from __future__ import annotations

from crosvm_py.cli.commands.asking import SOCKET
from crosvm_py.cli.commands.devices import table as device_table
from crosvm_py.cli.grammar.command import Command
from crosvm_py.cli.grammar.options import switch
from crosvm_py.cli.output import write_out
from crosvm_py.cli.watch.amounts import size, word
from crosvm_py.cli.watch.look import look_at
from crosvm_py.cli.watch.report import fields, title
from crosvm_py.control.socket_client import TIMEOUT_SECONDS
from sys_util.typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from crosvm_py.cli.grammar.command import GlobalSettings
    from crosvm_py.cli.grammar.options import Arguments
    from crosvm_py.cli.watch.look import Look

JSON: Final = switch("--json", "print JSON for programs, with every counter")


def _info(arguments: Arguments, _settings: GlobalSettings) -> int:
    (path,) = arguments.positional
    look = look_at(path, TIMEOUT_SECONDS)
    if arguments.has(JSON):
        import json

        text = json.dumps(fields(look), indent=2)
    else:
        text = "\n".join(lines_of(look))
    write_out(f"{text}\n")
    return 0


def lines_of(look: Look) -> list[str]:
    """Return what a person reads."""
    lines = [title(look), "", "vCPUs:"]
    for vcpu in look.vcpus:
        time = "unknown" if vcpu.cpu_seconds is None else f"{vcpu.cpu_seconds:.1f} s"
        facts = f"processor time {time}, {vcpu.exits} exits to the vmm"
        lines.append(f"  vcpu{vcpu.index}: thread {vcpu.thread_id}, {facts}")
    lines += ["", "Processes:"]
    for process in look.processes:
        memory = f"memory {size(process.private_bytes)}, shared {size(process.shared_bytes)}"
        facts = f"processor time {process.cpu_seconds:.1f} s, {memory}"
        lines.append(f"  {word(process.name)}: process {process.pid}, {facts}")
    if not look.processes:
        lines.append("  none that this user can see")
    lines += ["", "Devices:"]
    lines += [f"  {line}" for line in device_table(look.devices)]
    return lines


INFO: Final = Command(
    "info",
    "print what a VM is and has: state, vCPUs, processes, devices",
    (JSON,),
    (SOCKET,),
    _info,
    examples=("crosvm info vm.sock", "crosvm info --json vm.sock"),
)
