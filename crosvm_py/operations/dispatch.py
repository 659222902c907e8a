# SPDX-License-Identifier: BSD-3-Clause
"""Find and call the operation for each request of a client."""

from __future__ import annotations

import os

from crosvm_py.operations.operation import OPERATIONS
from sys_util.modules import load_module
from sys_util.typing import TYPE_CHECKING

if TYPE_CHECKING:
    from crosvm_py.operations.operation import RunningVm
    from crosvm_py.requests.pending import Handler, Pending
    from crosvm_py.requests.protocol import Request, Response


def request_handler(vm: RunningVm) -> Handler:
    """Return the handler for requests to one VM."""
    load_operations()

    def handle(request: Request) -> Response | Pending:
        return OPERATIONS[type(request)](vm, request)

    return handle


def load_operations() -> None:
    """Import the modules of this folder, each of which adds its operations to the table."""
    package = __name__.rpartition(".")[0]
    for entry in sorted(os.listdir(os.path.dirname(__file__))):
        name, _, suffix = entry.partition(".")
        if suffix == "py" and name != "__init__":
            load_module(f"{package}.{name}")
