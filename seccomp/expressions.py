# SPDX-License-Identifier: BSD-3-Clause
"""The right-hand side of a statement: an action, or a condition on the arguments.

body       = action | condition [ ";" "return" ERRNO ]
action     = "1" | "allow" | "return" ERRNO | "kill" | "kill-process" | "kill-thread"
           | "trap" | "log"
condition  = clause { "||" clause }
clause     = term { "&&" term }
term       = "argN" OP constant | "(" condition ")"
constant   = single { "|" single }
single     = [ "~" ] ( NUMBER | NAME | "(" constant ")" )
"""

from __future__ import annotations

from seccomp.actions import KILL_PROCESS, KILL_THREAD, LOG, MAX_ERRNO, TRAP, Action
from seccomp.rules import ALWAYS, MAX_ARGS, NEVER, U64, Atom, Clause, Condition
from sys_util.typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from seccomp.lexer import Statement, Token

MAX_NESTING: Final = 16  # parentheses
MAX_CLAUSES: Final = 1024

_OPERATORS: Final = frozenset({"==", "!=", "<", "<=", ">", ">=", "&", "in"})
_ACTIONS: Final = {
    "kill": KILL_PROCESS,
    "kill-process": KILL_PROCESS,
    "kill-thread": KILL_THREAD,
    "trap": TRAP,
    "log": LOG,
}
_RESTRICTIVE: Final = frozenset({"kill", "kill-process", "kill-thread", "trap"})
_MAX_NUMBER_CHARACTERS: Final = 32


class Cursor:
    """The tokens of one statement, read from left to right."""

    def __init__(self, statement: Statement, constants: dict[str, int]) -> None:
        self._tokens = statement.tokens
        self._at = 0
        self._constants = constants

    @property
    def token(self) -> Token:
        """The next token."""
        return self._tokens[self._at]

    def advance(self) -> Token:
        """Consume the next token and return it."""
        token = self.token
        self._at += token.kind != "end"
        return token

    def accept(self, text: str) -> bool:
        """Consume the next token if it is this symbol or word."""
        if self.token.kind in ("symbol", "word") and self.token.text == text:
            self._at += 1
            return True
        return False

    def expect(self, text: str) -> None:
        """Consume this symbol or fail."""
        if not self.accept(text):
            self.token.fail(f"expected '{text}'" + instead_of(self.token))

    def finish(self) -> None:
        """Fail unless the statement ends here."""
        if self.token.kind != "end":
            self.token.fail("unexpected")

    # body

    def body(self) -> tuple[Condition, Action | None]:
        """Parse the part of a statement after the colon."""
        token = self.token
        if token.kind == "word" and not token.text.startswith("arg"):
            return self._action()
        condition = self._condition(0)
        otherwise = None
        if self.accept(";"):
            if self.token.text != "return":
                self.token.fail("expected 'return'" + instead_of(self.token))
            otherwise = self._action()[1]
        return condition, otherwise

    def _action(self) -> tuple[Condition, Action | None]:
        token = self.advance()
        if token.text in ("1", "allow"):
            return ALWAYS, None
        if token.text == "return":
            return NEVER, Action("errno", self._errno())
        if token.text in _ACTIONS:
            return NEVER, _ACTIONS[token.text]
        return token.fail("unknown action")

    def default_action(self) -> Action:
        """Parse the part of the line after ``@default``."""
        token = self.advance()
        if token.kind == "end":
            token.fail("@default without an action")
        if token.text not in _RESTRICTIVE:
            token.fail(f"@default takes one of {', '.join(sorted(_RESTRICTIVE))}, not")
        return _ACTIONS[token.text]

    def _errno(self) -> int:
        token = self.token
        if token.kind != "word" or not (token.text[0] == "E" or token.text[0].isdigit()):
            token.fail("expected an errno" + instead_of(token))
        value = self._single(0)
        if value > MAX_ERRNO:
            token.fail(f"errno beyond {MAX_ERRNO}:")
        return value

    # conditions

    def _condition(self, depth: int) -> Condition:
        clauses = self._clause(depth)
        while self.accept("||"):
            clauses += self._clause(depth)
            self._bound(len(clauses))
        return tuple(dict.fromkeys(clauses))

    def _clause(self, depth: int) -> Condition:
        clauses = self._term(depth)
        while self.accept("&&"):
            right = self._term(depth)
            self._bound(len(clauses) * len(right))
            clauses = tuple(_conjoin(a, b) for a in clauses for b in right)
        return clauses

    def _bound(self, count: int) -> None:
        if count > MAX_CLAUSES:
            self.token.fail(f"condition with more than {MAX_CLAUSES} alternatives")

    def _term(self, depth: int) -> Condition:
        token = self.token
        if self.accept("("):
            if depth == MAX_NESTING:
                token.fail(f"parentheses nested deeper than {MAX_NESTING}")
            condition = self._condition(depth + 1)
            self._close(token)
            return condition
        self.advance()
        if token.kind != "word" or not token.text.startswith("arg"):
            token.fail("expected an argument such as arg0" + instead_of(token))
        index = token.text.removeprefix("arg")
        if index not in ("0", "1", "2", "3", "4", "5"):
            token.fail(f"arguments are arg0 to arg{MAX_ARGS - 1}, not")
        operator = self.advance()
        if operator.text not in _OPERATORS:
            operator.fail("expected an operator" + instead_of(operator))
        return ((Atom(int(index), operator.text, self._constant(0)),),)

    def _close(self, opening: Token) -> None:
        if not self.accept(")"):
            if self.token.kind == "end":
                opening.fail("parenthesis is never closed:")
            self.token.fail("expected ')' before")

    # constants

    def _constant(self, depth: int) -> int:
        value = self._single(depth)
        while self.accept("|"):
            value |= self._single(depth)
        return value

    def _single(self, depth: int) -> int:
        if self.accept("~"):
            if self.token.text == "~":
                self.token.fail("doubled")
            return ~self._single(depth) & U64
        token = self.token
        if self.accept("("):
            if depth == MAX_NESTING:
                token.fail(f"parentheses nested deeper than {MAX_NESTING}")
            value = self._constant(depth + 1)
            self._close(token)
            return value
        self.advance()
        if token.kind != "word":
            token.fail("expected a constant" + instead_of(token))
        return self._value(token)

    def _value(self, token: Token) -> int:
        if token.text.lstrip("-")[:1].isdigit():
            value = read_number(token)
        elif token.text in self._constants:
            value = self._constants[token.text]
        else:
            token.fail("unknown constant")
        if not -(1 << 63) <= value <= U64:
            token.fail("does not fit into 64 bits:")
        return value & U64


def instead_of(token: Token) -> str:
    """Return how a message that begins with "expected X" continues before the token."""
    return " before the end of the line" if token.kind == "end" else ", not"


def _conjoin(left: Clause, right: Clause) -> Clause:
    return tuple(dict.fromkeys(left + right))


def read_number(token: Token) -> int:
    """Read a number as strtol(3) does: 0x means hexadecimal, a leading 0 octal."""
    digits = token.text.lstrip("-")
    base = 16 if digits[:2] in ("0x", "0X") else 8 if digits[0] == "0" and len(digits) > 1 else 10
    if len(digits) > _MAX_NUMBER_CHARACTERS:
        token.fail("does not fit into 64 bits:")
    try:
        if "_" in digits:
            raise ValueError
        value = int(digits, base)
    except ValueError:
        token.fail("not a number:")
    return -value if token.text[0] == "-" else value
