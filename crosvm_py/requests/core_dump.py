# SPDX-License-Identifier: BSD-3-Clause
"""The request to dump a VM into a core file.

A client sends ``DumpCore`` to the control process. That asks the vmm whether it can (``MayDump``),
has its opener make the file, and gives the vmm its descriptor (``WriteCore``).
"""

from __future__ import annotations

from crosvm_py.requests.plug import MAX_PATH_BYTES
from crosvm_py.requests.protocol import Done
from sys_util.facts import fact
from sys_util.typing import TYPE_CHECKING, ClassVar
from sys_util.wire import blob

if TYPE_CHECKING:
    from sys_util.wire import Check, Message


@fact
class DumpCore:
    """Write memory and registers into a new file at an absolute path; ``Done`` when it is complete.

    The VM stands still meanwhile.
    """

    TYPE: ClassVar[int] = 57
    FIELDS: ClassVar[tuple[Check, ...]] = (blob(MAX_PATH_BYTES),)
    ANSWER: ClassVar[type[Message]] = Done
    IN_CONTROL: ClassVar[bool] = True  # the vmm does not serve it
    path: bytes


@fact
class MayDump:
    """Answer whether a dump can begin now."""

    TYPE: ClassVar[int] = 58
    FIELDS: ClassVar[tuple[Check, ...]] = ()
    ANSWER: ClassVar[type[Message]] = Done
    BY_CONTROL: ClassVar[bool] = True  # no client may send it


@fact
class WriteCore:
    """Dump the VM into the file whose descriptor comes with this."""

    TYPE: ClassVar[int] = 59
    FIELDS: ClassVar[tuple[Check, ...]] = ()
    ANSWER: ClassVar[type[Message]] = Done
    BY_CONTROL: ClassVar[bool] = True


def path_fault(path: bytes) -> str:
    """Say why no core file can have this path, or nothing."""
    if not path.startswith(b"/"):
        return "the path of a core file is absolute"
    if b".." in path.split(b"/"):
        return "the path of a core file has no .. in it"
    if b"\0" in path or path.endswith(b"/"):
        return "the path of a core file names a file"
    if len(path) > MAX_PATH_BYTES:
        return f"a path of {len(path)} bytes is longer than {MAX_PATH_BYTES}"
    return ""
