# SPDX-License-Identifier: BSD-3-Clause
"""Two parts of a jail: what is the same for every device, and the limits, which depend on it.

A spare process takes the first part before it knows which device it will be. The limits only become
lower, which takes no capability, so they can come last; nothing of a guest was read before.
"""

from __future__ import annotations

from jail.steps import LimitResources
from sys_util.facts import replace
from sys_util.typing import TYPE_CHECKING

if TYPE_CHECKING:
    from jail.plan import JailPlan


def without_limits(plan: JailPlan) -> JailPlan:
    """Return ``plan`` with every step but the limits."""
    return replace(plan, steps=tuple(s for s in plan.steps if not isinstance(s, LimitResources)))


def limits_of(plan: JailPlan) -> JailPlan:
    """Return ``plan`` with the limits as its only step before the filter."""
    return replace(plan, steps=tuple(s for s in plan.steps if isinstance(s, LimitResources)))
