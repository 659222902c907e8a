# SPDX-License-Identifier: BSD-3-Clause
"""The jails of the control process, of its keeper and of its opener."""

from __future__ import annotations

from jail.plan import (
    COMMON_LIMITS,
    MAX_DATA_BYTES,
    MAX_OPEN_FILES,
    JailPlan,
    drop_privileges,
    gain_nothing,
    lose_privileges,
    take,
)
from jail.steps import LimitResources, LoadFilter, NoNewPrivileges
from sys_util import linux
from sys_util.errors import HostError
from sys_util.typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from seccomp import Policy

# The control process of a REST API: 10 clients with 253 descriptors each, and two configurations.
_API_OPEN_FILES: Final = 4096
_API_FILE_BYTES: Final = 16 << 20
# The opener makes TAPs, and gives them an address.
_OPENER_CAPABILITIES: Final = frozenset({linux.CAP_NET_ADMIN})


def control_jail(policy: Policy, *, has_api: bool = False, opens: bool = False) -> JailPlan:
    """Return the jail of the process that serves clients: descriptors for them, and no more.

    If it ``has_api``, clients may send it descriptors, and it writes a file in memory. Its opener
    ``opens`` the files of its user, in children, and keeps the capability to make a TAP, where it
    has that. Both keep their ids, and have closed what they do not need.
    """
    held = linux.capabilities()
    kept = held & _OPENER_CAPABILITIES if opens else frozenset()
    return JailPlan(
        steps=(
            *lose_privileges(held, kept),
            LimitResources(
                (("DATA", MAX_DATA_BYTES), ("FSIZE", _API_FILE_BYTES if has_api else 0))
            ),
            *gain_nothing(_API_OPEN_FILES if has_api else MAX_OPEN_FILES, opens=opens, keep=kept),
        ),
        filter_step=LoadFilter(policy.name, policy.bpf),
    )


def confine_keeper() -> None:
    """Take from the keeper, and so from the program that it executes, the privileges of root.

    What the opener keeps is left to it, where the user has it.

    Raises:
        HostError: a step was refused.
    """
    drop_privileges(_OPENER_CAPABILITIES)
    try:
        linux.keep_capabilities_for_programs(linux.capabilities())
    except OSError as error:
        raise HostError("keep", "the capability to make a TAP") from error
    take(LimitResources(COMMON_LIMITS))
    take(NoNewPrivileges())
