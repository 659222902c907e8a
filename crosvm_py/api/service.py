# SPDX-License-Identifier: BSD-3-Clause
"""From an HTTP request to its answer: find the endpoint, read the body, carry the call out.

Calls that change something run one after the other. Those that only ask (GET) are answered
meanwhile.
"""

from __future__ import annotations

import os
from collections import deque

from crosvm_py.api.call import Call
from crosvm_py.api.errors import BAD_REQUEST, BAD_REQUEST_EMPTY, NOT_FOUND, bad_json
from crosvm_py.api.http import with_phrase
from crosvm_py.api.routes import name_of
from crosvm_py.api.steps import carry_out
from crosvm_py.vm_config.codec import decode
from crosvm_py.vm_config.errors import SchemaError
from sys_util.typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from crosvm_py.api.call import Route
    from crosvm_py.api.http import HttpRequest
    from crosvm_py.api.vm import ApiVm

    Reply = Callable[[bytes], None]


class _Waiting(NamedTuple):
    route: Route
    call: Call
    reply: Reply


class Service:
    """Carries out the calls for one VM."""

    def __init__(self, vm: ApiVm, routes: Mapping[str, Route]) -> None:
        self._vm = vm
        self._routes = routes
        # Each connection has one request under way, so this is as short as there are clients.
        self._waiting: deque[_Waiting] = deque()
        self._busy = False

    def serve(self, request: HttpRequest, reply: Reply) -> None:
        """Carry out a request, whose descriptors are closed unless the call takes them."""
        route = self._routes.get(name_of(request.target))
        refusal = NOT_FOUND if route is None else _unfit(route, request)
        if route is None or refusal:
            request.close()
            reply(refusal)
            return
        try:
            body = None if route.body is None else decode(request.body, route.body)
        except SchemaError as error:
            request.close()
            reply(bad_json(str(error)))
            return
        if request.reads_phrase:
            reply = _spelled_out(reply)
        call = _Waiting(route, Call(body, request.fds), reply)
        if route.method == "GET":
            self._start(call, reply)
        else:
            self._waiting.append(call)
            self._next()

    def _next(self) -> None:
        while self._waiting and not self._busy:
            self._busy = True
            waiting = self._waiting.popleft()
            self._start(waiting, self._then_next(waiting.reply))

    def _then_next(self, reply: Reply) -> Reply:
        def finish(answer: bytes) -> None:
            self._busy = False
            reply(answer)
            self._next()

        return finish

    def _start(self, waiting: _Waiting, reply: Reply) -> None:
        def finish(answer: bytes) -> None:
            for fd in waiting.call.fds:
                os.close(fd)
            reply(answer)

        carry_out(waiting.route.failure, waiting.route.steps(self._vm, waiting.call), finish)


def _spelled_out(reply: Reply) -> Reply:
    return lambda answer: reply(with_phrase(answer))


def _unfit(route: Route, request: HttpRequest) -> bytes:
    """Return the answer to a request of another method, or with the wrong body, or nothing."""
    if request.method != route.method or (request.body and route.body is None):
        return BAD_REQUEST
    if route.body is not None and not request.body:
        return BAD_REQUEST_EMPTY if request.target.endswith("vm.create") else BAD_REQUEST
    return b""
