# SPDX-License-Identifier: BSD-3-Clause
"""The ``operation`` decorator: it marks the function that carries out one kind of request.

Every module in this folder uses it; ``dispatch`` imports all of them.
"""

from __future__ import annotations

from sys_util.typing import TYPE_CHECKING, Final, NamedTuple, Protocol, TypeVar, cast

if TYPE_CHECKING:
    from collections.abc import Callable

    from crosvm_py.exit_status import VmExit
    from crosvm_py.machine.board import Board
    from crosvm_py.machine.vcpu import VcpuSet
    from crosvm_py.operations.suspension import Suspension
    from crosvm_py.requests.pending import Pending
    from crosvm_py.requests.protocol import Request, Response
    from crosvm_py.vmm.plugging import Plugging
    from crosvm_py.vmm.reboot import Rebooting
    from crosvm_py.vmm.supervisor import Supervisor

    R = TypeVar("R", bound=Request)
    A = TypeVar("A", bound="Response | Pending")
    Operation = Callable[["RunningVm", Request], Response | Pending]


class Dumper(Protocol):
    """Writes core files of a VM."""

    def check(self) -> None:
        """Check whether a dump can begin now.

        Raises:
            ConfigError: it cannot.
        """

    def dump(self) -> Pending:
        """Write the core file whose descriptor came with the present request.

        Raises:
            ConfigError: it cannot begin now, or this is no new file.
        """
        ...


class RunningVm(NamedTuple):
    """What operations act on. ``end`` ends the VM and logs the reason.

    ``plugging`` is ``None`` where devices can neither come nor go, ``rebooting`` where the guest
    boots only once, ``dumper`` where no core can be dumped.
    """

    machine: Board
    supervisor: Supervisor
    suspension: Suspension
    vcpus: VcpuSet
    end: Callable[[VmExit, str], None]
    plugging: Plugging | None = None
    rebooting: Rebooting | None = None
    dumper: Dumper | None = None


OPERATIONS: Final[dict[type[Request], Operation]] = {}


def operation(
    request: type[R],
) -> Callable[[Callable[[RunningVm, R], A]], Callable[[RunningVm, R], A]]:
    """Mark the function that carries out requests of the class ``request``.

    If the function raises a ``VmmError``, the client gets that as the answer.
    """

    def mark(function: Callable[[RunningVm, R], A]) -> Callable[[RunningVm, R], A]:
        OPERATIONS[request] = cast("Operation", function)  # only called with this class
        return function

    return mark
