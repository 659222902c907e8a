# SPDX-License-Identifier: BSD-3-Clause
"""All requests of clients, found as the classes with ``ANSWER`` in the modules of this folder.

Most are passed on to the vmm. One with ``IN_CONTROL`` the control process carries out itself, and
one with ``BY_CONTROL`` no client may send.
"""

from __future__ import annotations

import os

from crosvm_py.requests.protocol import Failed
from sys_util.modules import load_module
from sys_util.typing import TYPE_CHECKING, Final
from sys_util.wire import Codec

if TYPE_CHECKING:
    from collections.abc import Iterator

    from crosvm_py.requests.protocol import Request


def _find() -> Iterator[type[Request]]:
    package = __name__.rpartition(".")[0]
    for entry in sorted(os.listdir(os.path.dirname(__file__))):
        module, _, suffix = entry.partition(".")
        if suffix != "py" or f"{package}.{module}" in (__name__, f"{package}.__init__"):
            continue
        found = load_module(f"{package}.{module}")
        if getattr(found, "IS_INTERNAL", False):
            continue
        for value in vars(found).values():
            if getattr(value, "ANSWER", None) and value.__module__ == found.__name__:
                yield value


ALL: Final = tuple(_find())
# What clients may send, and what the vmm serves.
REQUESTS: Final = Codec(each for each in ALL if not getattr(each, "BY_CONTROL", False))
SERVED: Final = tuple(each for each in ALL if not getattr(each, "IN_CONTROL", False))
VMM_REQUESTS: Final = Codec(SERVED)
RESPONSES: Final = Codec((Failed, *{request.ANSWER: None for request in ALL}))
