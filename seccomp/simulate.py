# SPDX-License-Identifier: BSD-3-Clause
"""Run a seccomp filter on one system call, as the kernel would (classic BPF, seccomp(2)).

This accepts only what the kernel accepts in a seccomp filter: aligned 32-bit loads from
``struct seccomp_data``, arithmetic, forward jumps, scratch memory.
"""

from __future__ import annotations

import struct

from seccomp.actions import Action
from seccomp.syscalls import AUDIT_ARCH_X86_64
from sys_util.typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Sequence

INSTRUCTION: Final = struct.Struct("=HBBI")  # struct sock_filter
SECCOMP_DATA: Final = struct.Struct("=IIQ6Q")  # struct seccomp_data
BPF_MAXINSNS: Final = 4096
BPF_MEMWORDS: Final = 16

_WORD: Final = 0xFFFFFFFF
_LD, _LDX, _ST, _STX, _ALU, _JMP, _RET, _MISC = range(8)
_BPF_X: Final = 0x08


class BadFilterError(ValueError):
    """The kernel would refuse to load this program."""


class _Machine:
    """The state of the classic BPF machine while the filter runs on one system call."""

    def __init__(self, data: bytes) -> None:
        self.words: tuple[int, ...] = struct.unpack(f"={len(data) // 4}I", data)
        self.length = len(data)
        self.a = 0
        self.x = 0
        self.memory = [0] * BPF_MEMWORDS

    def load(self, code: int, k: int) -> int:
        mode = code & 0xE0
        if mode == 0x00:  # BPF_IMM
            return k
        if mode == 0x20 and code & 7 == _LD:  # BPF_ABS
            if k % 4 or k >= self.length:
                raise BadFilterError(f"load from offset {k} of struct seccomp_data")
            return self.words[k // 4]
        if mode == 0x60 and k < BPF_MEMWORDS:  # BPF_MEM
            return self.memory[k]
        if mode == 0x80:  # BPF_LEN
            return self.length
        raise BadFilterError(f"instruction {code:#x} with {k:#x}")

    def store(self, k: int, value: int) -> None:
        if k >= BPF_MEMWORDS:
            raise BadFilterError(f"store to scratch word {k}")
        self.memory[k] = value

    def jumps(self, code: int, operand: int) -> bool:
        test = code & 0xF0
        if test == 0x10:
            return self.a == operand
        if test == 0x20:
            return self.a > operand
        if test == 0x30:
            return self.a >= operand
        if test == 0x40:
            return bool(self.a & operand)
        raise BadFilterError(f"jump {code:#x}")


def _alu(code: int, a: int, operand: int) -> int:
    operation = code & 0xF0
    if operation in (0x30, 0x90):  # BPF_DIV, BPF_MOD
        if operand == 0:
            return 0
        return a // operand if operation == 0x30 else a % operand
    results = {
        0x00: a + operand,
        0x10: a - operand,
        0x20: a * operand,
        0x40: a | operand,
        0x50: a & operand,
        0x60: a << (operand & 31),
        0x70: a >> (operand & 31),
        0x80: -a,
        0xA0: a ^ operand,
    }
    if operation not in results:
        raise BadFilterError(f"arithmetic {code:#x}")
    return results[operation] & _WORD


def decode(bpf: bytes) -> list[tuple[int, int, int, int]]:
    """Split a program into ``(code, jt, jf, k)``.

    Raises:
        BadFilterError: no program has this length.
    """
    count, rest = divmod(len(bpf), INSTRUCTION.size)
    if rest or not 0 < count <= BPF_MAXINSNS:
        raise BadFilterError(f"{len(bpf)} bytes are no program of 1..{BPF_MAXINSNS} instructions")
    return list(INSTRUCTION.iter_unpack(bpf))


def simulate(bpf: bytes, nr: int, args: Sequence[int], arch: int = AUDIT_ARCH_X86_64) -> Action:
    """Return what the filter does with system call ``nr``; missing arguments are 0.

    Raises:
        BadFilterError: the program gets to an instruction that the kernel would refuse to load.
    """
    return run(decode(bpf), nr, args, arch)


def run(
    program: Sequence[tuple[int, int, int, int]], nr: int, args: Sequence[int], arch: int
) -> Action:
    """Do the same as ``simulate`` for a program that is already decoded."""
    values = [arg & 0xFFFFFFFFFFFFFFFF for arg in args] + [0] * (6 - len(args))
    machine = _Machine(SECCOMP_DATA.pack(nr & _WORD, arch, 0, *values))
    at = 0
    while at < len(program):
        code, jt, jf, k = program[at]
        at += 1
        kind = code & 7
        if kind == _RET:
            return Action.from_value(machine.a if code & 0x18 == 0x10 else k)
        if kind == _JMP:
            at += _jump(machine, code, jt, jf, k)
        else:
            _step(machine, code, k)
    raise BadFilterError("the program ends without a return")


def _jump(machine: _Machine, code: int, jt: int, jf: int, k: int) -> int:
    if code & 0xF0 == 0x00:  # BPF_JA
        return k
    return jt if machine.jumps(code, machine.x if code & _BPF_X else k) else jf


def _step(machine: _Machine, code: int, k: int) -> None:
    kind = code & 7
    if kind == _LD:
        machine.a = machine.load(code, k)
    elif kind == _LDX:
        machine.x = machine.load(code, k)
    elif kind == _ST:
        machine.store(k, machine.a)
    elif kind == _STX:
        machine.store(k, machine.x)
    elif kind == _ALU:
        machine.a = _alu(code, machine.a, machine.x if code & _BPF_X else k)
    elif code & 0x80:  # BPF_TXA
        machine.a = machine.x
    else:  # BPF_TAX
        machine.x = machine.a
