# SPDX-License-Identifier: BSD-3-Clause
"""Start to serve the REST API in the control process."""

from __future__ import annotations

import os

from crosvm_py.api.errors import bad_request
from crosvm_py.api.routes import CREATABLE, FIXED
from crosvm_py.api.server import ApiServer
from crosvm_py.api.service import Service
from crosvm_py.api.store import Store
from crosvm_py.api.vm import ApiVm
from sys_util.typing import TYPE_CHECKING

if TYPE_CHECKING:
    from crosvm_py.api.vm import Ask
    from sys_util import socket
    from sys_util.listener import Loop


def serve_api(
    loop: Loop,
    ask: Ask,
    listening: socket.socket,
    store: int,
    vmm_pid: int,
    *,
    boots: bool,
) -> ApiServer:
    """Serve clients on ``loop``, for the rest of the process; they may be of our user or root.

    With ``boots`` they create the VM and boot it; otherwise it is there.
    """
    routes = CREATABLE if boots else FIXED
    service = Service(ApiVm(ask, Store(store), vmm_pid), routes)
    return ApiServer(loop, listening, service.serve, bad_request, (0, os.geteuid()))
