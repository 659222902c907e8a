# SPDX-License-Identifier: BSD-3-Clause
"""What all commands that send a request to a running VM share."""

from __future__ import annotations

from crosvm_py.cli.grammar.options import Positional
from crosvm_py.control import socket_client as client
from crosvm_py.requests.devices import MAX_NAME_CHARS
from sys_util.errors import UsageError
from sys_util.typing import TYPE_CHECKING, Final, TypeVar

if TYPE_CHECKING:
    from crosvm_py.requests.protocol import Request

T = TypeVar("T")

SOCKET: Final = Positional("SOCKET", "control socket of a VM (crosvm run -s SOCKET)")
# How many VMs one command line may name.
SOCKETS: Final = SOCKET._replace(at_most=1024)
DEVICE: Final = Positional(
    "DEVICE", "device of that VM, as crosvm devices names it: block:0, net:1"
)


def ask_for(path: str, request: Request, kind: type[T]) -> T:
    """Send ``request`` to the VM at ``path`` and return its answer, which must be a ``kind``.

    Raises:
        ControlError: the VM refused, or sent another kind of answer.
        HostError: nothing listens at ``path``.
    """
    answer = client.ask(path, request)
    if not isinstance(answer, kind):
        raise client.ControlError(f"{path}: an answer to another question")
    return answer


def device_name(command: str, text: str) -> str:
    """Return ``text`` if it can be the name of a device.

    Raises:
        UsageError: it is too long for one.
    """
    if len(text) > MAX_NAME_CHARS:
        raise UsageError(f"{command}: {text:.80}: no device has such a name")
    return text
