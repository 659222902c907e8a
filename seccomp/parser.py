# SPDX-License-Identifier: BSD-3-Clause
"""Parse policies in minijail's grammar (minijail0(5)) into a ``PolicyTree``.

    statement  = names ":" body                     (body: see expressions.py)
    names      = NAME | "{" NAME { "," NAME } "}"
    directive  = "@include" PATH | "@frequency" PATH | "@default" ACTION

``condition; return ERRNO`` allows a call for which the condition holds; any other fails with ERRNO,
as in libminijail. All statements about one system call are joined, also from different files: a
call is allowed if one of them allows it. Two statements with different ERRNOs are an error. A
condition that depends on more bits of an argument than the kernel reads is refused (widths.py).
"""

from __future__ import annotations

from seccomp.errors import PolicyError
from seccomp.expressions import Cursor, instead_of, read_number
from seccomp.lexer import Token, statements
from seccomp.rules import ALWAYS, PolicyTree, Rule, Source
from seccomp.sources import resolve
from seccomp.syscalls import get_constants
from seccomp.widths import too_wide
from sys_util.typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from seccomp.actions import Action
    from seccomp.rules import Condition

MAX_INCLUDE_DEPTH: Final = 10  # as in minijail's compiler


class _Parser:
    """Parses one policy and the files that it includes."""

    def __init__(self, sources: dict[str, bytes], arch: str, syscalls: dict[str, int]) -> None:
        self._sources = sources
        self._syscalls = syscalls
        self._constants = get_constants(arch)
        self._stack: list[str] = []
        self.rules: dict[int, Rule] = {}
        self.default: Action | None = None
        self.default_where = ""
        self.frequency: dict[int, int] = {}

    def file(self, path: str) -> None:
        self._stack.append(path)
        for statement in statements(path, self._sources[path]):
            cursor = Cursor(statement, self._constants)
            if cursor.token.kind == "directive":
                self._directive(cursor)
            else:
                self._rule(cursor, statement.text)
            cursor.finish()
        self._stack.pop()

    def _directive(self, cursor: Cursor) -> None:
        token = cursor.advance()
        if token.text == "@include":
            self._include(cursor)
        elif token.text == "@frequency":
            self._frequency(self._named_file(cursor))
        elif token.text == "@default":
            self.default = cursor.default_action()
            self.default_where = f"{token.path}:{token.line}"
        elif token.text == "@denylist":
            token.fail("a policy lists what is allowed; not supported:")
        else:
            token.fail("unknown directive")

    def _named_file(self, cursor: Cursor) -> str:
        """Consume the path after @include or @frequency and return it, resolved."""
        token = cursor.advance()
        if token.kind != "path":
            token.fail("expected a path on the line of the directive" + instead_of(token))
        path = resolve(token.path, token.text)
        if path not in self._sources:
            token.fail(f"file {path} does not exist, named")
        return path

    def _include(self, cursor: Cursor) -> None:
        token = cursor.token
        path = self._named_file(cursor)
        if path in self._stack:
            token.fail("file includes itself:")
        if len(self._stack) > MAX_INCLUDE_DEPTH:
            token.fail(f"@include nested deeper than {MAX_INCLUDE_DEPTH}:")
        cursor.finish()
        self.file(path)

    def _frequency(self, path: str) -> None:
        for statement in statements(path, self._sources[path]):
            cursor = Cursor(statement, self._constants)
            names = self._names(cursor)
            cursor.expect(":")
            token = cursor.advance()
            if token.kind != "word" or not token.text.isdecimal():
                token.fail("expected a count" + instead_of(token))
            count = read_number(token)
            for _, number in names:
                self.frequency[number] = self.frequency.get(number, 0) + count
            cursor.finish()

    def _names(self, cursor: Cursor) -> list[tuple[str, int]]:
        names = []
        opening = cursor.token
        group = cursor.accept("{")
        while True:
            token = cursor.advance()
            if token.kind != "word":
                token.fail("expected the name of a system call" + instead_of(token))
            if token.text not in self._syscalls:
                token.fail("unknown system call")
            names.append((token.text, self._syscalls[token.text]))
            if not group or not cursor.accept(","):
                break
        if group and not cursor.accept("}"):
            opening.fail("brace is never closed:")
        return names

    def _rule(self, cursor: Cursor, text: str) -> None:
        names = self._names(cursor)
        where = cursor.token
        cursor.expect(":")
        allow, otherwise = cursor.body()
        cursor.finish()
        body = text.partition(":")[2].strip()
        here = f"{where.path}:{where.line}"
        place = here if otherwise is not None else ""
        sources = (Source(here, body, allow),)
        for name, number in names:
            self._refuse_too_wide(name, allow, where)
            new = Rule(name, number, allow, otherwise, body, place, sources)
            old = self.rules.get(number)
            self.rules[number] = new if old is None else _join(old, new, where)

    def _refuse_too_wide(self, name: str, allow: Condition, where: Token) -> None:
        for clause in allow:
            arg = too_wide(name, clause)
            if arg is None:
                continue
            told = " && ".join(str(atom) for atom in clause if atom.arg == arg)
            raise PolicyError(
                f"{where.path}:{where.line}: {name}: '{told}' depends on the upper half of "
                f"arg{arg}, which the kernel does not read; add a bound, as in 'arg{arg} <= 64', "
                "or list the values"
            )


def _join(old: Rule, new: Rule, where: Token) -> Rule:
    """Join two statements about one system call with OR."""
    if old.otherwise and new.otherwise and old.otherwise != new.otherwise:
        where.fail(
            f"{new.name}: '{new.otherwise}' contradicts '{old.otherwise}' of {old.where}, at"
        )
    allow = tuple(dict.fromkeys(old.allow + new.allow))
    if () in allow:
        allow = ALWAYS
    return new._replace(
        allow=allow,
        otherwise=new.otherwise or old.otherwise,
        text=old.text if new.text == old.text else f"{old.text} || {new.text}",
        where=new.where or old.where,
        sources=old.sources + new.sources,
    )


def parse(sources: dict[str, bytes], arch: str, syscalls: dict[str, int]) -> PolicyTree:
    """Parse the first of ``sources`` and all files that it includes.

    Raises:
        PolicyError: something is wrong; the text has ``file:line`` and the word.
    """
    path = next(iter(sources))
    parser = _Parser(sources, arch, syscalls)
    parser.file(path)
    if not parser.rules:
        raise PolicyError(f"{path}: no system call is mentioned")
    return PolicyTree(parser.rules, parser.default, parser.frequency, parser.default_where)
