# SPDX-License-Identifier: BSD-3-Clause
"""Compile a ``PolicyTree`` to BPF with libseccomp.

The program kills a process that makes a call of any ABI but this architecture's own 64-bit one.
Importing pyseccomp, and with it ctypes, takes milliseconds, so this module is imported only if the
cache does not have the program.
"""

from __future__ import annotations

import os

import pyseccomp

from seccomp.actions import ALLOW, LOG, TRAP, Action
from seccomp.cubes import EVERYTHING, Box, complement_boxes, condition_boxes
from seccomp.errors import PolicyError
from seccomp.rules import ALWAYS, U64
from seccomp.simulate import BPF_MAXINSNS, INSTRUCTION
from seccomp.verify import verify
from sys_util.typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from seccomp.rules import Atom, PolicyTree, Rule
    from seccomp.syscalls import Arch

# The comparators of pyseccomp.Arg.
_COMPARATORS: Final = {
    "==": pyseccomp.EQ,
    "!=": pyseccomp.NE,
    "<": pyseccomp.LT,
    "<=": pyseccomp.LE,
    ">": pyseccomp.GT,
    ">=": pyseccomp.GE,
}
_HIGHEST_PRIORITY: Final = 255
_UNKNOWN_CALL: Final = -1  # __NR_SCMP_ERROR


def default_action(tree: PolicyTree, *, log_failures: bool) -> Action:
    """Return the action for calls that the policy does not mention."""
    return LOG if log_failures else tree.default or TRAP


def otherwise_action(rule: Rule, *, log_failures: bool) -> Action | None:
    """Return the action for a call with a rule that does not allow it; ``None`` for the default.

    With ``log_failures`` the call is logged if it would end the process. An errno stays, because
    programs rely on it.
    """
    if log_failures and rule.otherwise is not None and rule.otherwise.kind != "errno":
        return LOG
    return rule.otherwise


def compile_tree(tree: PolicyTree, arch: Arch, *, log_failures: bool) -> bytes:
    """Return the BPF program.

    Raises:
        PolicyError: a rule is too complex, or libseccomp refuses or miscompiles it.
    """
    default = default_action(tree, log_failures=log_failures)
    effective = tree._replace(
        rules={
            number: rule._replace(otherwise=otherwise_action(rule, log_failures=log_failures))
            for number, rule in tree.rules.items()
        }
    )
    bpf = _export(effective, arch, default)
    if len(bpf) > BPF_MAXINSNS * INSTRUCTION.size:
        count = len(bpf) // INSTRUCTION.size
        raise PolicyError(f"{count} BPF instructions; the kernel takes {BPF_MAXINSNS}")
    verify(bpf, effective, arch, default)
    return bpf


def _export(tree: PolicyTree, arch: Arch, default: Action) -> bytes:
    # libseccomp refuses a rule with the default action, which is not needed anyway.
    syscalls = pyseccomp.SyscallFilter(default.value)
    numbers = {rule.number: rule.number for rule in tree.rules.values()}
    if pyseccomp.system_arch() != arch.audit:
        syscalls.remove_arch(pyseccomp.system_arch())
        syscalls.add_arch(arch.audit)
        numbers = {rule.number: _machine_number(rule.name) for rule in tree.rules.values()}
    syscalls.set_attr(pyseccomp.Attr.ACT_BADARCH, pyseccomp.KILL_PROCESS)
    for rule in tree.rules.values():
        try:
            _add(syscalls, rule._replace(number=numbers[rule.number]), default)
        except OSError as error:
            raise PolicyError(f"{rule.name}: libseccomp: {error.strerror}") from error
        except PolicyError as error:
            raise PolicyError(f"{rule.name}: {error}") from error
    ranked = sorted(tree.frequency, key=lambda number: tree.frequency[number])
    for rank, number in enumerate(reversed(ranked)):
        if number in tree.rules:
            syscalls.syscall_priority(numbers[number], max(1, _HIGHEST_PRIORITY - rank))
    with open(os.memfd_create("seccomp_bpf", os.MFD_CLOEXEC), "w+b") as file:
        syscalls.export_bpf(file)
        file.seek(0)
        return file.read()


def _machine_number(name: str) -> int:
    """Return the number by which libseccomp knows a call of another architecture.

    That is the number of the call with the same name on this machine, which libseccomp translates.
    If this machine does not have such a call, the number is negative.
    """
    number: int = pyseccomp.resolve_syscall(pyseccomp.system_arch(), name)
    if number == _UNKNOWN_CALL:
        raise PolicyError(f"{name}: libseccomp is too old to know it on another architecture")
    return number


def _add(syscalls: pyseccomp.SyscallFilter, rule: Rule, default: Action) -> None:
    otherwise = rule.otherwise or default
    if otherwise == default and (native := _native_rule(rule)) is not None:
        syscalls.add_rule_exactly(ALLOW.value, rule.number, *native)
        return
    for box in condition_boxes(rule.allow):
        syscalls.add_rule_exactly(ALLOW.value, rule.number, *_box_rule(box))
    if otherwise != default:
        for box in complement_boxes(rule.allow):
            syscalls.add_rule_exactly(otherwise.value, rule.number, *_box_rule(box))


def _native_rule(rule: Rule) -> list[pyseccomp.Arg] | None:
    """Return libseccomp's comparators for a condition that is one rule, else ``None``.

    libseccomp compiles its comparators correctly only in that case; see cubes.py.
    """
    if len(rule.allow) != 1 or rule.allow == ALWAYS:
        return None
    atoms = rule.allow[0]
    if len({atom.arg for atom in atoms}) != len(atoms):
        return None
    if any(atom.op == "&" and atom.value.bit_count() != 1 for atom in atoms):
        return None
    return [_comparator(atom) for atom in atoms]


def _comparator(atom: Atom) -> pyseccomp.Arg:
    if atom.op == "&":
        return pyseccomp.Arg(atom.arg, pyseccomp.MASKED_EQ, atom.value, atom.value)
    if atom.op == "in":
        return pyseccomp.Arg(atom.arg, pyseccomp.MASKED_EQ, ~atom.value & U64, 0)
    return pyseccomp.Arg(atom.arg, _COMPARATORS[atom.op], atom.value)


def _box_rule(box: Box) -> list[pyseccomp.Arg]:
    return [
        pyseccomp.Arg(arg, pyseccomp.EQ, cube.value)
        if cube.mask == U64
        else pyseccomp.Arg(arg, pyseccomp.MASKED_EQ, cube.mask, cube.value)
        for arg, cube in enumerate(box)
        if cube != EVERYTHING
    ]


def libseccomp_path() -> str:
    """Return the file of the libseccomp that this process has loaded; "" if it is not found."""
    with open("/proc/self/maps", encoding="utf-8", errors="surrogateescape") as maps:
        for line in maps:
            path = line.rstrip("\n").split(None, 5)[5:]
            if path and "/libseccomp." in path[0]:
                return path[0]
    return ""
