# SPDX-License-Identifier: BSD-3-Clause
"""The code that device processes run: what was imported, or what is installed now."""

from __future__ import annotations

import sys

from sys_util.crash import name_and_words
from sys_util.errors import VmmError
from sys_util.typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable, Iterable, Mapping

    from crosvm_py.kinds.kind import DeviceKind
    from crosvm_py.warden.protocol import Spawn
    from jail.plan import JailPlan


class Code(NamedTuple):
    """The code that device processes run."""

    kinds: Mapping[str, DeviceKind]
    run: Callable[[Spawn, socket.socket, list[int], JailPlan | None], int]


def read_anew(wanted: Iterable[str]) -> Code:
    """Return the code of devices as it is installed now; the kinds ``wanted`` are imported.

    Raises:
        VmmError: it cannot be loaded; what was loaded before is still there.
    """
    from importlib import import_module

    old = {
        name: module
        for name, module in sys.modules.items()
        if name.startswith(("devices.", "crosvm_py.device_", "crosvm_py.kinds."))
    }
    for name in old:
        del sys.modules[name]
    try:
        kinds = import_module("crosvm_py.kinds.table").DEVICE_KINDS
        for kind in wanted:
            kinds[kind].preload()
        return Code(kinds, import_module("crosvm_py.device_process.process").run_device)
    except Exception as error:  # code that somebody else wrote may raise anything
        sys.modules.update(old)
        raise VmmError(f"its code cannot be read anew: {name_and_words(error)}") from error
