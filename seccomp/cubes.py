# SPDX-License-Identifier: BSD-3-Clause
"""Turn conditions into rules that libseccomp compiles correctly.

libseccomp accepts one comparator for each argument of a rule, and joins the rules of a system call
with OR. We compared programs of version 2.5.4 with their rules. It joins any number of rules
correctly if they test only masked equality. But if two rules of one system call contain
``!= < <= > >=``, the program allows too little or too much, or libseccomp does not return. So we
write every condition as masked equalities ("cubes": ``(arg & mask) == value``). Every set of 64-bit
numbers is a union of cubes; for a range at most 126 are needed.
"""

from __future__ import annotations

from seccomp.errors import PolicyError
from seccomp.rules import U64, Atom, Condition
from sys_util.typing import TYPE_CHECKING, Final, NamedTuple, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Iterable

# How many libseccomp rules one system call may need; a program has at most 4096 instructions.
MAX_CUBES: Final = 1024


class Cube(NamedTuple):
    """The numbers x with ``(x & mask) == value``."""

    mask: int
    value: int


EVERYTHING: Final = Cube(0, 0)
Box: TypeAlias = tuple[Cube, Cube, Cube, Cube, Cube, Cube]  # a cube per argument, joined with AND
ANY_ARGUMENTS: Final[Box] = (EVERYTHING,) * 6

_COMPLEMENT: Final = {"==": "!=", "!=": "==", "<": ">=", ">=": "<", "<=": ">", ">": "<="}


def intersect(left: Cube, right: Cube) -> Cube | None:
    """Return the numbers that are in both, or ``None`` if there are none."""
    if (left.value ^ right.value) & left.mask & right.mask:
        return None
    return Cube(left.mask | right.mask, left.value | right.value)


def _flipped(value: int, bits: Iterable[int]) -> list[Cube]:
    """Return for each bit the numbers that equal ``value`` above the bit and differ in the bit."""
    return [Cube(U64 & -(1 << bit), (value ^ 1 << bit) & -(1 << bit)) for bit in bits]


def atom_cubes(atom: Atom) -> list[Cube]:
    """Return cubes whose union is what the atom allows."""
    op, value = atom.op, atom.value
    if op == "in":
        return [Cube(~value & U64, 0)]
    if op == "==":
        return [Cube(U64, value)]
    if op == "!=":
        return _flipped(value, range(64))
    if op == "&":
        return [Cube(1 << bit, 1 << bit) for bit in range(64) if value >> bit & 1]
    # If x < v, the highest bit in which x differs from v is set in v; if x > v, it is clear in v.
    # x <= v is x < v + 1, and x >= v is x > v - 1.
    if op in ("<=", ">="):
        value += 1 if op == "<=" else -1
    if not 0 <= value <= U64:
        return [EVERYTHING]
    set_bit = op in ("<", "<=")
    return _flipped(value, (bit for bit in range(64) if bool(value >> bit & 1) == set_bit))


def complement(atom: Atom) -> Atom:
    """Return the opposite comparison."""
    if atom.op == "&":
        return Atom(atom.arg, "in", ~atom.value & U64)
    if atom.op == "in":
        return Atom(atom.arg, "&", ~atom.value & U64)
    return Atom(atom.arg, _COMPLEMENT[atom.op], atom.value)


def condition_boxes(condition: Condition) -> list[Box]:
    """Return the rules that together allow what the condition allows.

    Raises:
        PolicyError: there would be too many.
    """
    boxes: dict[Box, None] = {}
    for clause in condition:
        boxes.update(
            dict.fromkeys(narrow_all([ANY_ARGUMENTS], ([atom] for atom in dict.fromkeys(clause))))
        )
        _bound(len(boxes))
    return list(boxes)


def complement_boxes(condition: Condition) -> list[Box]:
    """Return the rules that together match what the condition does not allow.

    Raises:
        PolicyError: there would be too many.
    """
    return narrow_all([ANY_ARGUMENTS], ([complement(atom) for atom in c] for c in condition))


def narrow_all(boxes: list[Box], alternatives: Iterable[list[Atom]]) -> list[Box]:
    """Restrict the boxes to arguments for which at least one atom of every list holds."""
    for atoms in alternatives:
        cubes = [(atom.arg, cube) for atom in atoms for cube in atom_cubes(atom)]
        narrowed = (_narrow(box, arg, cube) for box in boxes for arg, cube in cubes)
        boxes = list(dict.fromkeys(box for box in narrowed if box is not None))
        _bound(len(boxes))
    return boxes


def _narrow(box: Box, arg: int, cube: Cube) -> Box | None:
    both = intersect(box[arg], cube)
    if both is None:
        return None
    a, b, c, d, e, f = (both if index == arg else old for index, old in enumerate(box))
    return a, b, c, d, e, f


def _bound(count: int) -> None:
    if count > MAX_CUBES:
        raise PolicyError(f"too complex: needs more than {MAX_CUBES} libseccomp rules")
