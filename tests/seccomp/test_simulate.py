# SPDX-License-Identifier: BSD-3-Clause
"""The BPF machine itself, instruction by instruction."""

from __future__ import annotations

import pytest

from seccomp.actions import ALLOW, KILL_PROCESS, Action
from seccomp.simulate import INSTRUCTION, BadFilterError, simulate

RET_A = (0x16, 0, 0, 0)
DATA = 0x50000  # SECCOMP_RET_ERRNO: makes the low 16 bits of a result visible


def program(*instructions: tuple[int, int, int, int]) -> bytes:
    return b"".join(INSTRUCTION.pack(*instruction) for instruction in instructions)


def computed(*instructions: tuple[int, int, int, int]) -> int:
    mark = ((0x54, 0, 0, 0xFFFF), (0x44, 0, 0, DATA), RET_A)
    return simulate(program(*instructions, *mark), 7, (0x1_0000_0002, 3)).data


def load(value: int) -> tuple[int, int, int, int]:
    return (0x00, 0, 0, value)


@pytest.mark.parametrize(
    ("instructions", "result"),
    [
        pytest.param([(0x20, 0, 0, 0)], 7, id="nr"),
        pytest.param([(0x20, 0, 0, 4)], 0x3E, id="arch"),
        pytest.param([(0x20, 0, 0, 16)], 2, id="arg0-low"),
        pytest.param([(0x20, 0, 0, 20)], 1, id="arg0-high"),
        pytest.param([(0x20, 0, 0, 24)], 3, id="arg1"),
        pytest.param([(0x80, 0, 0, 0)], 64, id="len"),
        pytest.param([load(5), (0x04, 0, 0, 3)], 8, id="add"),
        pytest.param([load(5), (0x14, 0, 0, 3)], 2, id="sub"),
        pytest.param([load(5), (0x24, 0, 0, 3)], 15, id="mul"),
        pytest.param([load(7), (0x34, 0, 0, 2)], 3, id="div"),
        pytest.param([load(7), (0x94, 0, 0, 4)], 3, id="mod"),
        pytest.param([load(7), (0x34, 0, 0, 0)], 0, id="div-by-0"),
        pytest.param([load(5), (0x44, 0, 0, 2)], 7, id="or"),
        pytest.param([load(5), (0x54, 0, 0, 4)], 4, id="and"),
        pytest.param([load(5), (0x64, 0, 0, 1)], 10, id="lsh"),
        pytest.param([load(5), (0x74, 0, 0, 1)], 2, id="rsh"),
        pytest.param([load(5), (0xA4, 0, 0, 1)], 4, id="xor"),
        pytest.param([load(1), (0x84, 0, 0, 0)], 0xFFFF, id="neg"),
        pytest.param([(0x01, 0, 0, 9), (0x87, 0, 0, 0)], 9, id="ldx-txa"),
        pytest.param([load(6), (0x07, 0, 0, 0), load(1), (0x0C, 0, 0, 0)], 7, id="tax-add-x"),
        pytest.param([load(6), (0x02, 0, 0, 3), load(0), (0x60, 0, 0, 3)], 6, id="st-ld-mem"),
        pytest.param([(0x01, 0, 0, 4), (0x03, 0, 0, 1), (0x60, 0, 0, 1)], 4, id="stx"),
        pytest.param([load(1), (0x05, 0, 0, 1), load(2)], 1, id="ja"),
        pytest.param([load(1), (0x15, 1, 0, 1), load(2)], 1, id="jeq-taken"),
        pytest.param([load(1), (0x15, 1, 0, 3), load(2)], 2, id="jeq-not"),
        pytest.param([load(4), (0x25, 1, 0, 4), load(2)], 2, id="jgt-equal"),
        pytest.param([load(4), (0x35, 1, 0, 4), load(2)], 4, id="jge-equal"),
        pytest.param([load(6), (0x45, 1, 0, 2), load(2)], 6, id="jset"),
    ],
)
def test_instruction(instructions: list[tuple[int, int, int, int]], result: int) -> None:
    assert computed(*instructions) == result


@pytest.mark.parametrize(
    ("bpf", "reason"),
    [
        (b"", "no program"),
        (b"1234567", "no program"),
        (program(RET_A) * 4097, "no program"),
        (program(load(1)), "without a return"),
        (program((0x05, 0, 0, 9), RET_A), "without a return"),
        (program((0x20, 0, 0, 64), RET_A), "load from offset 64"),
        (program((0x20, 0, 0, 2), RET_A), "load from offset 2"),
        (program((0x40, 0, 0, 0), RET_A), "instruction 0x40"),
        (program((0x60, 0, 0, 16), RET_A), "instruction 0x60"),
        (program((0x02, 0, 0, 16), RET_A), "scratch word 16"),
        (program((0xF4, 0, 0, 1), RET_A), "arithmetic 0xf4"),
        (program((0x55, 0, 0, 1), RET_A), "jump 0x55"),
    ],
)
def test_program_that_the_kernel_refuses_is_refused(bpf: bytes, reason: str) -> None:
    with pytest.raises(BadFilterError, match=reason):
        simulate(bpf, 0, ())


@pytest.mark.parametrize(
    ("value", "action"),
    [
        (0x7FFF0000, ALLOW),
        (0x80000000, KILL_PROCESS),
        (0x00050002, Action("errno", 2)),
        (0x12340000, KILL_PROCESS),
    ],
)
def test_return_value_is_named(value: int, action: Action) -> None:
    assert simulate(program((0x06, 0, 0, value)), 0, ()) == action


@pytest.mark.parametrize(
    ("action", "text"),
    [
        (ALLOW, "allow"),
        (Action("errno", 2), "return ENOENT"),
        (Action("errno", 4000), "return 4000"),
    ],
)
def test_action_reads_as_in_a_policy(action: Action, text: str) -> None:
    assert str(action) == text
