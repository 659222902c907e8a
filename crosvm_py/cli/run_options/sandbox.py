# SPDX-License-Identifier: BSD-3-Clause
"""Options of the sandbox."""

from __future__ import annotations

from crosvm_py.cli.grammar import keyvalue
from crosvm_py.cli.grammar.options import Option, OptionGroup, switch, text_option
from sys_util.errors import UsageError
from sys_util.landlock import MAX_LANDLOCK_RULES, LandlockRule
from sys_util.typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from crosvm_py.cli.grammar.options import Arguments


POLICY_DIR: Final = text_option(
    "--seccomp-policy-dir", "DIR", "use the seccomp policies in DIR, not those that are built in"
)
LOG_FAILURES: Final = switch(
    "--seccomp-log-failures",
    "unsafe: log system calls that a policy denies, instead of ending the device",
)
CGROUP: Final = text_option(
    "--cgroup",
    "PATH|none",
    "limit what the devices take of the host in groups of cgroup v2 below PATH; none: in no "
    "group (default: below a group that is ours, where there is one)",
)
LANDLOCK: Final = switch(
    "--landlock",
    "let crosvm plug open only the files that --landlock-rules name (landlock(7)); without rules "
    "none",
)
_PATH: Final = keyvalue.path("path", "a file, or a directory with all that is below it")
_ACCESS: Final = keyvalue.choice("access", "what may be done there", ("r", "w", "rw"), "r")
_FIELDS: Final = (_PATH, _ACCESS)


def _read_rule(option: str, text: str) -> LandlockRule:
    values = keyvalue.parse(option, text, _FIELDS)
    return LandlockRule(values[_PATH], values[_ACCESS])


LANDLOCK_RULES: Final = Option(
    "--landlock-rules",
    "PATH,access=r|w|rw",
    "a path for --landlock; may be repeated",
    _read_rule,
    repeatable=True,
    fields=_FIELDS,
)


def landlock(arguments: Arguments) -> tuple[LandlockRule, ...] | None:
    """Return the rules, or ``None`` without ``--landlock``.

    Raises:
        UsageError: there are rules without it, or too many.
    """
    rules = tuple(arguments.every(LANDLOCK_RULES))
    if rules and not arguments.has(LANDLOCK):
        raise UsageError(f"{LANDLOCK_RULES.name}: needs {LANDLOCK.name}")
    if len(rules) > MAX_LANDLOCK_RULES:
        limit = f"above the limit of {MAX_LANDLOCK_RULES}"
        raise UsageError(f"{LANDLOCK_RULES.name}: {len(rules)} are {limit}")
    return rules if arguments.has(LANDLOCK) else None


NO_SANDBOX: Final = switch(
    "--disable-sandbox", "unsafe: run the devices without a jail and without seccomp policies"
)
MULTIPROCESS: Final = switch(
    "-u --multiprocess", "has no effect: every device always has a process of its own"
)

GROUP: Final = OptionGroup(
    "Sandbox",
    (POLICY_DIR, LOG_FAILURES, CGROUP, LANDLOCK, LANDLOCK_RULES, NO_SANDBOX, MULTIPROCESS),
    examples=("crosvm run --seccomp-policy-dir policies -r rootfs.img vmlinux",),
)
