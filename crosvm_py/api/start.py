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
from crosvm_py.requests.plug import Confine
from crosvm_py.requests.protocol import Failed
from crosvm_py.vm_config.landlock import landlock_rules
from sys_util.log import get_logger
from sys_util.typing import TYPE_CHECKING

if TYPE_CHECKING:
    from crosvm_py.api.vm import Ask
    from crosvm_py.requests.protocol import Response
    from sys_util import socket
    from sys_util.listener import Loop

_log = get_logger("crosvm.control")


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
    vm = ApiVm(ask, Store(store), vmm_pid)
    _confine(vm)
    service = Service(vm, routes)
    return ApiServer(loop, listening, service.serve, bad_request, (0, os.geteuid()))


def _confine(vm: ApiVm) -> None:
    """Have a new opener keep to the rules of the configuration that there is already."""
    config = vm.config
    rules = None if config is None else landlock_rules(config)
    if rules is None:
        return

    def told(answer: Response) -> None:
        if isinstance(answer, Failed):
            _log.error("%s", answer.reason)

    vm.ask(Confine(rules)).deliver_to(told)
