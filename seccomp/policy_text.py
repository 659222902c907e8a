# SPDX-License-Identifier: BSD-3-Clause
"""Write policies: conditions in minijail's grammar, and files that say where they came from."""

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
# The first words of a file that nobody recorded: it only makes its directory complete.
COPY_MARK: Final = b"# Copied, not recorded, by crosvm policy record.\n"

_WIDTH: Final = 100
_MAX_RUNS: Final = 32  # lines that tell of runs; the oldest are forgotten
_NOTE: Final = (
    "# Only what these runs called is allowed, and what a device says when it ends. The guests",
    "# decided what they asked of it: record with guests that do all that yours will do.",
)


class Writer:
    """Puts rules of one architecture into the grammar that the parser reads."""

    def __init__(self, arch: str) -> None:
        self._words = Vocabulary(arch)

    def statement(self, name: str, condition: Condition, otherwise: Action | None) -> list[str]:
        """Return the lines of one statement, the long ones continued by backslashes."""
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
        title: what the file is.
        runs: one line for each run.
        arch: the architecture of all three.
        recorded: what was called.
        reference: what the recording answered with an errno, stays so.
        earlier: the policy to add to.
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
    """Return what the header of a recorded policy says of its runs."""
    lines = text.decode("utf-8", "replace").splitlines()
    return [line.removeprefix(RUN_PREFIX) for line in lines if line.startswith(RUN_PREFIX)]


def is_copy(text: bytes) -> bool:
    """Tell whether a policy is there only to complete its directory."""
    return text.startswith(COPY_MARK)


def write_policy(directory: str, name: str, text: bytes) -> str:
    """Write a file at once or not at all; return its path.

    Raises:
        PolicyError: the host does not let us.
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
        PolicyError: the host does not let us.
    """
    copied = []
    for path, text in sources:
        name = os.path.basename(path)
        if not os.path.lexists(os.path.join(directory, name)):
            write_policy(directory, name, COPY_MARK + text)
            copied.append(name)
    return copied
