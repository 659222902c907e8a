# SPDX-License-Identifier: BSD-3-Clause
"""Calls that ask the vmm several things, one after the other, written as generators.

A call yields the answer that it waits for (``Pending``), is sent that answer when it has come, and
returns the bytes for its client.
"""

from __future__ import annotations

from collections.abc import Generator

from crosvm_py.api.errors import ApiError, failure, internal
from crosvm_py.requests.pending import Pending
from crosvm_py.requests.protocol import Failed, Response
from sys_util.errors import VmmError, describe
from sys_util.log import get_logger
from sys_util.typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Callable

Steps: TypeAlias = "Generator[Pending, Response, bytes]"

_log = get_logger("crosvm.control")


def carry_out(what: str, steps: Steps, done: Callable[[bytes], None]) -> None:
    """Take all steps of a call, and give ``done`` the answer; ``what`` names the call in errors."""

    def go_on(take: Callable[[], Pending]) -> None:
        try:
            pending = take()
        except StopIteration as stop:
            done(stop.value)
        except ApiError as error:
            done(failure(what, error))
        except VmmError as error:
            done(failure(what, ApiError(500, describe(error))))
        except Exception as error:  # noqa: BLE001 - a bug costs one request, not all clients
            _log.exception(error, "%s", what)
            done(internal())
        else:
            pending.deliver_to(lambda answer: go_on(lambda: steps.send(answer)))

    go_on(lambda: next(steps))


def expect(answer: Response) -> Response:
    """Return the answer of the vmm, unless it says that the request failed.

    Raises:
        ApiError: it says so.
    """
    if isinstance(answer, Failed):
        raise ApiError(500, answer.reason)
    return answer
