# SPDX-License-Identifier: BSD-3-Clause
"""Write policies in minijail's grammar, with a header that says which runs were recorded."""

from __future__ import annotations

import contextlib
import os

from seccomp.errors import PolicyError
from seccomp.record import ANY_TIME, denials, normal
from seccomp.rules import ALWAYS
from seccomp.vocabulary import Vocabulary
from sys_util.typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from seccomp.actions import Action
    from seccomp.record import Recording
    from seccomp.rules import Condition, PolicyTree

RUN_PREFIX: Final = "# run: "
# The first line of a file that was not recorded, but copied to make its directory complete.
COPY_MARK: Final = b"# Copied, not recorded, by crosvm policy record.\n"

_WIDTH: Final = 100
_MAX_RUNS: Final = 32  # how many lines about runs a header has; the oldest are dropped
_NOTE: Final = (
    "# Only what these runs called is allowed, and what a device says when it ends. The guests",
    "# decided what they asked of it: record with guests that do all that yours will do.",
)


class Writer:
    """Writes rules of one architecture in the grammar that the parser reads."""

    def __init__(self, arch: str) -> None:
        self._words = Vocabulary(arch)

    def statement(self, name: str, condition: Condition, otherwise: Action | None) -> list[str]:
        """Return the lines of one statement; a long one continues after a backslash."""
        if condition == ALWAYS:
            return [f"{name}: 1"]
        parts = [self._words.clause(name, clause) for clause in condition]
        if len(parts) > 1:
            parts = [f"({part})" if "&&" in part else part for part in parts]
        text = " || ".join(parts) + (f"; {otherwise}" if otherwise is not None else "")
        parts = text.replace(" || ", " ||\0").replace(" && ", " &&\0").split("\0")
        indent = " " * (len(name) + 2)
        rows = [f"{name}: {parts[0]}"]
        for part in parts[1:]:
            if len(rows[-1]) + len(part) + 3 <= _WIDTH:
                rows[-1] += f" {part}"
            else:
                rows[-1] += " \\"
                rows.append(indent + part)
        return rows


def policy_text(
    title: str,
    runs: Sequence[str],
    arch: str,
    recorded: Recording,
    reference: PolicyTree,
    earlier: PolicyTree | None,
) -> str:
    """Return a policy that allows what was recorded and what ``earlier`` allows.

    Args:
        title: the first line of the file.
        runs: one line for each run.
        arch: the architecture of all policies here.
        recorded: the calls that were made.
        reference: the policy in force before; calls that it answers with an errno still get it.
        earlier: the policy to which the recorded calls are added.
    """
    writer = Writer(arch)
    conditions = recorded.conditions()
    otherwise = dict(denials(reference))
    if earlier is not None:
        for rule in earlier.rules.values():
            if rule.allow:
                conditions[rule.name] = normal((*conditions.get(rule.name, ()), *rule.allow))
            if rule.otherwise is not None:
                otherwise[rule.name] = rule.otherwise
    lines = [f"# {title}", "#", *(RUN_PREFIX + run for run in runs[-_MAX_RUNS:]), "#", *_NOTE, ""]
    if earlier is not None and earlier.default is not None:
        lines += [f"@default {earlier.default}", ""]
    texts = {
        name: writer.statement(name, condition, otherwise.pop(name, None))
        for name, condition in sorted(conditions.items())
    }
    lines += [row for name, rows in texts.items() if name not in ANY_TIME for row in rows]
    lines += ["", "# Whatever the guest does, at any time: memory, time, signals, the end."]
    lines += [row for name, rows in texts.items() if name in ANY_TIME for row in rows]
    if otherwise:
        lines += ["", "# Answered so, and not carried out: a forgotten import is an ImportError."]
        lines += _answers(otherwise)
    return "\n".join(lines) + "\n"


def _answers(otherwise: dict[str, Action]) -> list[str]:
    """Return one statement for all calls that get the same answer."""
    lines = []
    for action in dict.fromkeys(otherwise.values()):
        names = sorted(name for name, each in otherwise.items() if each == action)
        group = f"{{{', '.join(names)}}}" if len(names) > 1 else names[0]
        lines.append(f"{group}: {action}")
    return lines


def runs_of(text: bytes) -> list[str]:
    """Return the lines about runs from the header of a recorded policy."""
    lines = text.decode("utf-8", "replace").splitlines()
    return [line.removeprefix(RUN_PREFIX) for line in lines if line.startswith(RUN_PREFIX)]


def is_copy(text: bytes) -> bool:
    """Return whether a policy was copied to make its directory complete."""
    return text.startswith(COPY_MARK)


def write_policy(directory: str, name: str, text: bytes) -> str:
    """Write a whole file or, if that fails, nothing; return its path.

    Raises:
        PolicyError: the host refuses to write it.
    """
    path = os.path.join(directory, name)
    temporary = os.path.join(directory, f".{name}.{os.getpid()}.tmp")
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        with open(os.open(temporary, flags, 0o644), "wb") as file:
            file.write(text)
        os.rename(temporary, path)
    except OSError as error:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise PolicyError(f"policy {path}: {error.strerror}") from error
    return path


def complete(directory: str, sources: Iterable[tuple[str, bytes]]) -> list[str]:
    """Copy the built-in files that a directory lacks; return their names.

    Raises:
        PolicyError: the host refuses to write one.
    """
    copied = []
    for path, text in sources:
        name = os.path.basename(path)
        if not os.path.lexists(os.path.join(directory, name)):
            write_policy(directory, name, COPY_MARK + text)
            copied.append(name)
    return copied
