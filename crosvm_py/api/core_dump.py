# SPDX-License-Identifier: BSD-3-Clause
"""Dump the VM into a core file."""

from __future__ import annotations

from crosvm_py.api.errors import NO_CONTENT, ApiError
from crosvm_py.requests.core_dump import DumpCore, path_fault
from crosvm_py.requests.protocol import Done
from crosvm_py.vm_config.requests import VmCoredumpData
from sys_util.stranger import brief
from sys_util.typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from crosvm_py.api.call import Call
    from crosvm_py.api.steps import Steps
    from crosvm_py.api.vm import ApiVm

_SCHEME: Final = "file://"


def dump(vm: ApiVm, call: Call) -> Steps:
    """Write memory and registers into a new file; a VM that runs is paused meanwhile."""
    wanted = call.taken(VmCoredumpData)
    yield from vm.booted()
    yield from vm.demand(DumpCore(_path(wanted.destination_url)), Done)
    return NO_CONTENT


def _path(url: str) -> bytes:
    """Return the path that a URL of a file names.

    Raises:
        ApiError: it names none where a core file can be.
    """
    if not url.startswith(_SCHEME):
        raise ApiError(500, f"destination_url {brief(url)} does not begin with {_SCHEME}")
    try:
        path = _unquoted(url.removeprefix(_SCHEME))
    except ValueError:
        raise ApiError(500, f"destination_url {brief(url)} is no URL") from None
    fault = path_fault(path)
    if fault:
        raise ApiError(500, f"destination_url {brief(url)}: {fault}")
    return path


def _unquoted(text: str) -> bytes:
    """Return the bytes that a part of a URL stands for.

    Raises:
        ValueError: two hexadecimal digits do not follow a ``%``.
    """
    plain, *quoted = text.encode().split(b"%")
    if any(len(part) < 2 for part in quoted):
        raise ValueError
    return plain + b"".join(bytes.fromhex(part[:2].decode()) + part[2:] for part in quoted)
