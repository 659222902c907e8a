# SPDX-License-Identifier: BSD-3-Clause
"""Read files out of a Debian package without unpacking it.

No file is written to a path that comes from the package: the caller chooses regular files by their
names, and gets their bytes.
"""

from __future__ import annotations

import subprocess
import tarfile

from crosvm_py.guest.tools import failure
from sys_util.errors import HostError
from sys_util.typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

# A kernel is 15 MiB, the largest module 8 MiB.
MAX_FILE_BYTES: Final = 128 << 20
_CHUNK_BYTES: Final = 1 << 16


def read_files(package: str, wanted: Callable[[str], bool]) -> Iterator[tuple[str, bytes]]:
    """Yield name and content of each regular file whose name is ``wanted``.

    Names have no leading dot or slash, as in ``boot/vmlinuz-6.1``.

    Raises:
        HostError: this is no Debian package, or a file in it is too large.
    """
    argv = ["dpkg-deb", "--fsys-tarfile", package]
    with subprocess.Popen(
        argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as unpacker:
        stream = unpacker.stdout
        if stream is None:
            return
        broken = b""
        try:
            with tarfile.open(fileobj=stream, mode="r|") as archive:
                yield from _files(package, archive, wanted)
            while stream.read(_CHUNK_BYTES):
                pass
        except tarfile.TarError as error:
            broken = str(error).encode()
        said = unpacker.stderr.read() if unpacker.stderr else b""
        if unpacker.wait() or broken:
            raise failure("unpacking", package, unpacker.returncode, said or broken)


def _files(
    package: str, archive: tarfile.TarFile, wanted: Callable[[str], bool]
) -> Iterator[tuple[str, bytes]]:
    for member in archive:
        name = member.name.removeprefix("./").lstrip("/")
        if not member.isreg() or not wanted(name):
            continue
        if member.size > MAX_FILE_BYTES:
            raise HostError("guest make: unpacking:", f"{package}: {name} has {member.size} bytes")
        file = archive.extractfile(member)
        if file is not None:
            yield name, file.read()
