# SPDX-License-Identifier: BSD-3-Clause
"""Start to serve the REST API in the control process."""

from __future__ import annotations

import os

from crosvm_py.api.errors import bad_request
from crosvm_py.api.routes import FIXED
from crosvm_py.api.server import ApiServer
from crosvm_py.api.service import Service
from crosvm_py.api.store import Store
from crosvm_py.api.vm import ApiVm
from sys_util.typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from crosvm_py.requests.pending import Pending
    from crosvm_py.requests.protocol import Request
    from sys_util import socket
    from sys_util.listener import Loop


def serve_api(
    loop: Loop,
    ask: Callable[[Request], Pending],
    listening: socket.socket,
    store: int,
    vmm_pid: int,
) -> ApiServer:
    """Serve clients on ``loop``, for the rest of the process; they may be of our user or root."""
    service = Service(ApiVm(ask, Store(store), vmm_pid, is_fixed=True), FIXED)
    return ApiServer(loop, listening, service.serve, bad_request, (0, os.geteuid()))
