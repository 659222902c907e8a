# SPDX-License-Identifier: BSD-3-Clause
"""Calls for what this program does not have. They answer as calls that failed do."""

from __future__ import annotations

from crosvm_py.api.errors import ApiError
from sys_util.typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from crosvm_py.api.call import Call
    from crosvm_py.api.steps import Steps
    from crosvm_py.api.vm import ApiVm


def no_device(thing: str) -> Callable[[ApiVm, Call], Steps]:
    """Return a call that refuses to add a device of a kind that is not there."""

    def refuse(vm: ApiVm, _call: Call) -> Steps:
        vm.known()
        yield from ()
        raise ApiError(500, f"{thing} are not supported by crosvm-py")

    return refuse


def not_yet(thing: str) -> Callable[[ApiVm, Call], Steps]:
    """Return a call that is refused in every state of the VM."""

    def refuse(_vm: ApiVm, _call: Call) -> Steps:
        yield from ()
        raise ApiError(500, f"{thing} is not supported by crosvm-py")

    return refuse


def fixed(thing: str) -> Callable[[ApiVm, Call], Steps]:
    """Return a call that makes no sense for a VM whose user described it (``crosvm run``)."""

    def refuse(_vm: ApiVm, _call: Call) -> Steps:
        yield from ()
        raise ApiError(500, f"VM is already {thing}")

    return refuse
