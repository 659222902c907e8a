# SPDX-License-Identifier: BSD-3-Clause
"""The description in a guest's folder, read by a process of its own."""

from __future__ import annotations

from contextlib import closing

from crosvm_py.file_parser.child import start_parser
from crosvm_py.file_parser.protocol import GuestFound
from crosvm_py.guest import description
from sys_util.typing import TYPE_CHECKING

if TYPE_CHECKING:
    from crosvm_py.guest.description import GuestDescription


class _GuestJob:
    """The bytes of a description; ``what`` is its path."""

    fds = ()

    def __init__(self, path: str, data: bytes) -> None:
        self.what = path
        self.size_bytes = len(data)
        self._data = data

    def prepare(self) -> None:
        """Everything is imported."""

    def work(self) -> GuestFound:
        found = description.parse(self.what, self._data)
        return GuestFound(found.kernel, found.initrd, found.root, found.rwroot, found.params)


def read_guest(
    folder: str, *, sandbox: bool = True, log_failures: bool = False
) -> GuestDescription:
    """Return the guest of a folder, with the paths of its files; the caller has one thread.

    Raises:
        ConfigError: the folder has no description, or the description is wrong.
        HostError: the host refuses to start a process.
    """
    path, data = description.read_bytes(folder)
    parser = start_parser(_GuestJob(path, data), sandbox=sandbox, log_failures=log_failures)
    with closing(parser):
        found = parser.answer()
        if not isinstance(found, GuestFound):
            raise parser.nonsense(f"an unexpected {type(found).__name__}")
    names = description.GuestDescription(
        found.kernel, found.initrd, found.root, found.rwroot, found.params
    )
    return description.located(folder, names)
