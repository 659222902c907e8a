# SPDX-License-Identifier: BSD-3-Clause
"""The rules of Landlock in a configuration: what may be opened while the guest runs."""

from __future__ import annotations

from crosvm_py.vm_config.problem import when
from sys_util.landlock import MAX_LANDLOCK_CHARS, MAX_LANDLOCK_RULES, LandlockRule
from sys_util.typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

    from crosvm_py.vm_config.problem import Problem
    from crosvm_py.vm_config.schema import VmConfig


def landlock_problems(config: VmConfig) -> Iterator[Problem]:
    """Return what is wrong with the rules."""
    rules = config.landlock_rules or ()
    limit = f"has more than {MAX_LANDLOCK_RULES} rules"
    yield from when(len(rules) > MAX_LANDLOCK_RULES, "landlock_rules", limit)
    for index, rule in enumerate(rules):
        wrong = not rule.access or not set(rule.access) <= {"r", "w"} or len(rule.access) > 2
        place = f"landlock_rules[{index}]"
        yield from when(wrong, f"{place}.access", f"{rule.access!r:.40} is not made of r and w")
        long = len(rule.path) > MAX_LANDLOCK_CHARS
        limit = f"has more than {MAX_LANDLOCK_CHARS} characters"
        yield from when(long or not rule.path, f"{place}.path", limit if long else "is empty")


def landlock_rules(config: VmConfig) -> tuple[LandlockRule, ...] | None:
    """Return the rules, or ``None`` if everything may be opened."""
    if not config.landlock_enable:
        return None
    return tuple(LandlockRule(rule.path, rule.access) for rule in config.landlock_rules or ())
