# SPDX-License-Identifier: BSD-3-Clause
"""Carry requests about the balloon to its device, and check what comes back."""

from __future__ import annotations

from crosvm_py.operations.operation import operation
from crosvm_py.requests.balloon import (
    PAGE_BYTES,
    BalloonAdjust,
    BalloonQuery,
    BalloonSet,
    BalloonState,
)
from crosvm_py.requests.pending import Pending
from crosvm_py.requests.protocol import MAX_REASON_CHARS, Failed
from sys_util.errors import ConfigError, ProtocolError
from sys_util.typing import TYPE_CHECKING, Final
from sys_util.wire import record

if TYPE_CHECKING:
    from crosvm_py.operations.operation import RunningVm
    from crosvm_py.requests.protocol import Response

_STATE: Final = record(BalloonState, *BalloonState.FIELDS)


@operation(BalloonSet)
def set_balloon(vm: RunningVm, request: BalloonSet) -> Pending:
    """Give the balloon a size."""
    return ask_balloon(vm, request)


@operation(BalloonAdjust)
def adjust_balloon(vm: RunningVm, request: BalloonAdjust) -> Pending:
    """Change the size of the balloon."""
    return ask_balloon(vm, request)


@operation(BalloonQuery)
def query_balloon(vm: RunningVm, request: BalloonQuery) -> Pending:
    """Tell how the balloon stands."""
    return ask_balloon(vm, request)


def ask_balloon(vm: RunningVm, request: BalloonSet | BalloonAdjust | BalloonQuery) -> Pending:
    """Return the answer to come of the balloon.

    Raises:
        ConfigError: there is none.
    """
    device = next((device for device in vm.supervisor.devices if device.name == "balloon"), None)
    if device is None:
        raise ConfigError("this VM has no balloon (crosvm run --balloon gives it one)")
    pending = Pending()
    verb, arguments = _command(request)
    device.command(verb, arguments, lambda ok, fields: pending.complete(_response(ok, fields)))
    return pending


def _command(
    request: BalloonSet | BalloonAdjust | BalloonQuery,
) -> tuple[str, dict[str, object]]:
    if isinstance(request, BalloonSet):
        return "set", {"pages": request.size_bytes // PAGE_BYTES}
    if isinstance(request, BalloonAdjust):
        return "adjust", {"pages": request.pages}
    return ("refresh" if request.refresh else "state"), {"hint": request.hint}


def _response(ok: bool, fields: dict[str, object]) -> Response:
    """Return the client's answer: the fields are of a process that nobody trusts."""
    if not ok:
        return Failed(f"{fields.get('error', 'refused')}"[:MAX_REASON_CHARS])
    values = [fields.get(name) for name in BalloonState.__match_args__]
    try:
        state = _STATE(values)
    except ProtocolError as error:
        return Failed(f"the balloon's process talks nonsense: {error}"[:MAX_REASON_CHARS])
    return state if isinstance(state, BalloonState) else Failed("no balloon state")
