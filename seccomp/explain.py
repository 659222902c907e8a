# SPDX-License-Identifier: BSD-3-Clause
"""Explain in English what a policy allows, and which rule decides about a call."""

from __future__ import annotations

import os

from seccomp.actions import ALLOW, TRAP, Action
from seccomp.errors import PolicyError
from seccomp.loader import load_policy, parse_policy, policy_path
from seccomp.own_process import is_bound
from seccomp.rules import ALWAYS, MAX_ARGS, U64
from seccomp.simulate import simulate
from seccomp.syscalls import get_arch, get_constants
from seccomp.vocabulary import Vocabulary
from sys_util.typing import TYPE_CHECKING, Final, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Sequence

    from seccomp.rules import Atom, Clause, Condition, PolicyTree, Rule, Source

_CONSEQUENCES: Final = {
    "trap": "trapped: the call does not happen, its number is reported, and the process ends",
    "kill-process": "killed: the process ends at once, and nothing is reported",
    "kill-thread": "killed: the thread ends at once, and nothing is reported",
    "log": "carried out and logged by the kernel",
}
_INFIX: Final = {
    "==": "is",
    "!=": "is not",
    "<": "is below",
    "<=": "is at most",
    ">": "is above",
    ">=": "is at least",
}
_WIDTH: Final = 100
_LONG_RULE: Final = 100  # characters; of a longer rule we show only the part that decides


def consequence(action: Action) -> str:
    """Say what happens to a call that gets ``action``."""
    if action.kind == "errno":
        return f"answered with {str(action).removeprefix('return ')}, and not carried out"
    return _CONSEQUENCES[action.kind]


class Explainer:
    """Puts rules of one architecture into words."""

    def __init__(self, arch: str) -> None:
        self._words = Vocabulary(arch)

    def condition(self, call: str, condition: Condition) -> str:
        """Say when a call is allowed."""
        alternatives = self._alternatives(call, condition)
        if alternatives is not None:
            return alternatives
        clauses = [self._clause(call, clause) for clause in condition]
        if len(clauses) == 1:
            return clauses[0]
        return "either " + "; or ".join(clauses)

    def atom(self, call: str, atom: Atom) -> str:
        """Say what one comparison demands."""
        word, value = self._words.argument(call, atom.arg), atom.value
        if atom.op in _INFIX:
            return f"{word} {_INFIX[atom.op]} {self._words.value(call, atom.arg, value)}"
        if atom.op == "&":
            names = self._words.names(call, atom.arg, value)
            return f"{word} has " + ("any of " if len(names) > 1 else "") + ", ".join(names)
        inverted = ~value & U64
        if inverted < value:
            names = self._words.names(call, atom.arg, inverted)
            return f"{word} has " + ("none of " if len(names) > 1 else "no ") + ", ".join(names)
        names = self._words.names(call, atom.arg, value)
        return f"{word} has nothing but " + ", ".join(names)

    def call(self, name: str, args: Sequence[int]) -> str:
        """Return a call as C would write it, with the names of its values."""
        shown = [self._words.value(name, arg, value) for arg, value in enumerate(args)]
        return f"{name}({', '.join(shown)})"

    def _alternatives(self, call: str, condition: Condition) -> str | None:
        """Say "is one of", if each clause is one ``==`` about the same argument; else ``None``."""
        atoms = [clause[0] for clause in condition if len(clause) == 1 and clause[0].op == "=="]
        if len(condition) < 2 or len(atoms) != len(condition) or len({a.arg for a in atoms}) > 1:
            return None
        arg = atoms[0].arg
        values = ", ".join(self._words.value(call, arg, atom.value) for atom in atoms)
        return f"{self._words.argument(call, arg)} is one of {values}"

    def _clause(self, call: str, clause: Clause) -> str:
        return " and ".join(self.atom(call, atom) for atom in sorted(clause, key=lambda a: a.arg))


_OWN_PROCESS: Final = "process (arg0) is the one that calls"


class Explanation(NamedTuple):
    """A parsed policy, and the file that it came from."""

    name: str
    path: str
    arch: str
    built_in: bool
    tree: PolicyTree

    @property
    def default(self) -> Action:
        """What happens to a call that no rule allows."""
        return self.tree.default or TRAP

    def rules(self) -> list[Rule]:
        """Return the rules by name."""
        return sorted(self.tree.rules.values(), key=lambda rule: rule.name)

    def allowed(self) -> int:
        """Return how many calls are allowed, with any or only some arguments."""
        return sum(bool(rule.allow) for rule in self.tree.rules.values())

    def files(self) -> list[str]:
        """Return the files that contain the rules, the policy's own first."""
        places = [source.where for rule in self.tree.rules.values() for source in rule.sources]
        found = dict.fromkeys([self.path, *(place.rpartition(":")[0] for place in places)])
        return list(found)


def explain(name: str, *, directory: str | None = None, arch: str) -> Explanation:
    """Read the policy that is to be explained.

    Raises:
        PolicyError: the file is missing or wrong.
    """
    path = policy_path(name, directory, arch)
    return Explanation(name, path, arch, directory is None, parse_policy(path, arch))


def as_lines(policy: Explanation) -> list[str]:
    """Return what ``crosvm policy show`` prints of one policy."""
    explainer = Explainer(policy.arch)
    origin = "built in" if policy.built_in else f"from {os.path.dirname(policy.path) or '.'}"
    files = ", ".join(os.path.basename(path) for path in policy.files())
    free = [rule.name for rule in policy.rules() if rule.allow == ALWAYS]
    limited = [rule for rule in policy.rules() if rule.allow and rule.allow != ALWAYS]
    lines = [
        f"{policy.name} ({policy.arch}, {origin}: {files})",
        *_wrap(
            f"allows {policy.allowed()} system call{'s' * (policy.allowed() != 1)}; any other is "
            f"{consequence(policy.default)}",
            0,
        ),
    ]
    if free:
        lines += ["", "Allowed with any arguments:", *_wrap(f"  {', '.join(free)}", 2)]
    if limited:
        lines += ["", "Allowed on a condition:"]
        width = max(len(rule.name) for rule in limited)
        for rule in limited:
            told = explainer.condition(rule.name, rule.allow)
            if is_bound(policy.name, rule.name):
                told = f"{_OWN_PROCESS} and {told}"
            rest = f"; else {consequence(rule.otherwise)}" if rule.otherwise else ""
            lines += _wrap(f"  {rule.name:{width}}  if {told}{rest}", width + 7)
    return lines + _denied(policy)


def _denied(policy: Explanation) -> list[str]:
    """Return lines about calls that the policy mentions only to deny them, by action."""
    groups: dict[Action, list[str]] = {}
    for rule in policy.rules():
        if not rule.allow and rule.otherwise is not None:
            groups.setdefault(rule.otherwise, []).append(rule.name)
    lines = []
    for action, names in groups.items():
        told = consequence(action)
        heading = f"{told[0].upper()}{told[1:]}:"
        lines += ["", *_wrap(heading, 0), *_wrap(f"  {', '.join(names)}", 2)]
    return lines


def _wrap(line: str, indent: int) -> list[str]:
    """Break a long line between words; indent all rows but the first."""
    rows = []
    while len(line) > _WIDTH:
        at = line.rfind(" ", indent + 1, _WIDTH + 1)
        if at < 0:
            break
        rows.append(line[:at].rstrip())
        line = " " * indent + line[at + 1 :]
    return [*rows, line]


def as_fields(policy: Explanation) -> dict[str, object]:
    """Return what ``crosvm policy show --json`` prints of one policy."""
    explainer = Explainer(policy.arch)
    return {
        "policy": policy.name,
        "arch": policy.arch,
        "built_in": policy.built_in,
        "files": policy.files(),
        "default": str(policy.default),
        "allowed": policy.allowed(),
        "calls": [
            _rule_fields(rule, explainer, own_process_only=is_bound(policy.name, rule.name))
            for rule in policy.rules()
        ],
    }


def _rule_fields(rule: Rule, explainer: Explainer, *, own_process_only: bool) -> dict[str, object]:
    clauses = [
        [
            {"arg": a.arg, "op": a.op, "value": a.value, "text": explainer.atom(rule.name, a)}
            for a in clause
        ]
        for clause in rule.allow
    ]
    return {
        "name": rule.name,
        "number": rule.number,
        "own_process_only": own_process_only,
        "allowed_if_any_of": clauses,
        "otherwise": None if rule.otherwise is None else str(rule.otherwise),
        "where": [source.where for source in rule.sources],
    }


class Decision(NamedTuple):
    """What the compiled filter does with a call, the call as we read it, and the deciding rules."""

    action: Action
    call: str
    reasons: tuple[str, ...]


def decide(policy: Explanation, call: str, words: Sequence[str]) -> Decision:
    """Run the compiled filter on one call and name the rules that decide.

    Raises:
        PolicyError: there is no such system call or constant, or the policy cannot be compiled.
    """
    arch = get_arch(policy.arch)
    number = arch.syscalls.get(call)
    if number is None:
        raise PolicyError(f"unknown system call {call!r:.60}{_similar(call, arch.syscalls)}")
    if len(words) > MAX_ARGS:
        raise PolicyError(f"{len(words)} arguments; a system call has at most {MAX_ARGS}")
    args = [read_argument(word, get_constants(policy.arch)) for word in words]
    directory = None if policy.built_in else os.path.dirname(policy.path) or "."
    bpf = load_policy(policy.name, directory=directory, arch=policy.arch).bpf
    action = simulate(bpf, number, args, arch.audit)
    told = Explainer(policy.arch).call(call, args)
    return Decision(action, told, tuple(_reasons(policy, number, args, action)))


def _reasons(policy: Explanation, number: int, args: Sequence[int], action: Action) -> list[str]:
    full = [*args, *[0] * (MAX_ARGS - len(args))]
    rule = policy.tree.rules.get(number)
    default = policy.tree.default_where or f"{policy.path}: the default"
    if rule is None:
        return [f"{default}: no rule names this call"]
    if action != ALLOW:
        if rule.otherwise is not None:
            return [_quote(rule, at) for at in rule.sources if at.where == rule.where]
        return [f"{_quote(rule, at)}: does not hold" for at in rule.sources]
    found = []
    for source in rule.sources:
        holding = [c for c in source.allow if all(atom.holds(full) for atom in c)]
        if holding:
            decisive = Vocabulary(policy.arch).clause(rule.name, holding[0])
            found.append(_quote(rule, source, f"… {decisive} …"))
    if is_bound(policy.name, rule.name):
        found.append(f"in a run only where {_OWN_PROCESS}")
    return found


def _quote(rule: Rule, source: Source, short: str = "") -> str:
    """Return a statement with its file and line; if it is long, ``short`` or its beginning."""
    text = source.text
    if len(text) > _LONG_RULE:
        text = short or text[:_LONG_RULE].rstrip() + "…"
    return f"{source.where}: {rule.name}: {text}"


def read_argument(word: str, constants: dict[str, int]) -> int:
    """Read a value of an argument: numbers and names joined by ``|``, each perhaps after ``~``.

    Raises:
        PolicyError: a part of it is neither a number nor a known name.
    """
    if word.startswith(("/", "'", '"')):
        raise PolicyError(
            f"{word!r:.60}: a filter sees addresses and not what is there; write a number"
        )
    value = 0
    for part in word.split("|"):
        value |= _read_single(part.strip(), word, constants)
    return value & U64


def _read_single(part: str, word: str, constants: dict[str, int]) -> int:
    if part.startswith("~"):
        return ~_read_single(part[1:].strip(), word, constants) & U64
    if part in constants:
        return constants[part] & U64
    try:
        value = int(part, 0)
    except ValueError:
        inside = "" if part == word else f" in {word!r:.60}"
        raise PolicyError(
            f"{part!r:.60}{inside} is neither a number nor a constant{_similar(part, constants)}"
        ) from None
    if not -(1 << 63) <= value <= U64:
        raise PolicyError(f"{part:.60} does not fit into 64 bits")
    return value & U64


def _similar(word: str, known: dict[str, int]) -> str:
    """Return a hint with the most similar known word, or nothing."""
    import difflib

    close = difflib.get_close_matches(word, known, 1)
    return f", did you mean {close[0]}?" if close else ""
