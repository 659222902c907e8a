# SPDX-License-Identifier: BSD-3-Clause
"""Check what serial ports would open, without opening anything that others would notice.

No file is made, no socket is connected, and no FIFO is opened, because that would wake the program
at its other end. The errors are those of opening, as far as they can be found without it.
"""

from __future__ import annotations

import errno
import os
import stat

from crosvm_py.config import SerialSpec
from crosvm_py.console.targets import inherited_fd
from sys_util.errors import raise_host_error
from sys_util.facts import fields_of
from sys_util.typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

# These can be opened in a rehearsal: nobody notices.
_SHARED_TYPES: Final = ("stdout", "sink", "syslog")
_HINTS: Final = {
    "unix": "a datagram socket must be bound there",
    "unix-stream": "a stream socket must listen there",
}


def rehearse_serial_ports(specs: Iterable[SerialSpec]) -> tuple[SerialSpec, ...]:
    """Check the ports; return specs of them that can be opened without effects on others.

    Raises:
        HostError: something could not be opened.
    """
    return tuple(_rehearse(spec) for spec in specs)


def _rehearse(spec: SerialSpec) -> SerialSpec:
    """Check one port; return a spec with /dev/null instead, and the same number of descriptors."""
    changes: dict[str, object] = {}
    if spec.input is not None and inherited_fd(spec.input) is None:
        _look("open", f"--serial input={spec.input}", spec.input, _check_readable)
        changes["input"] = os.devnull
    path = spec.path or ""
    if spec.type in _SHARED_TYPES or inherited_fd(path) is not None:
        return _changed(spec, changes)
    if spec.type == "file":
        _look("open", f"--serial path={path}", path, _check_appendable)
    elif spec.type in _HINTS:
        name = f"--serial type={spec.type},path={path}"
        _look("connect", name, path, _check_socket, _HINTS[spec.type])
    if spec.type == "pty" or spec.input_unix_stream:
        changes["input"] = os.devnull
    changes |= {"type": "file", "path": os.devnull, "input_unix_stream": False}
    return _changed(spec, changes)


def _changed(spec: SerialSpec, changes: dict[str, object]) -> SerialSpec:
    return SerialSpec(**(fields_of(spec) | changes))  # type: ignore[arg-type]  # its own fields


def _look(
    operation: str, name: str, path: str, check: Callable[[str], int], hint: str = ""
) -> None:
    try:
        number = check(path)
    except OSError as error:
        raise_host_error(operation, name, error, hint)
    if number:
        raise_host_error(operation, name, OSError(number, os.strerror(number)), hint)


def _check_readable(path: str) -> int:
    if stat.S_ISDIR(os.stat(path).st_mode):
        return errno.EISDIR
    return 0 if os.access(path, os.R_OK, effective_ids=True) else errno.EACCES


def _check_appendable(path: str) -> int:
    """Return the errno of appending to a file, or of making it if it does not exist; 0 if none."""
    try:
        mode = os.stat(path).st_mode
    except FileNotFoundError:
        path = os.path.dirname(path) or "."
        os.stat(path)
        mode = 0
    if stat.S_ISDIR(mode):
        return errno.EISDIR
    needed = os.W_OK if mode else os.W_OK | os.X_OK
    return 0 if os.access(path, needed, effective_ids=True) else errno.EACCES


def _check_socket(path: str) -> int:
    if not stat.S_ISSOCK(os.stat(path).st_mode):
        return errno.ECONNREFUSED
    return 0 if os.access(path, os.W_OK, effective_ids=True) else errno.EACCES
