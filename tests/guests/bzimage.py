# SPDX-License-Identifier: BSD-3-Clause
"""Get the ``vmlinux`` out of a ``bzImage``, with the tools that packed it.

This is on purpose not the loader of the project: its tests compare with what comes out here.
"""

from __future__ import annotations

import struct
import subprocess
from typing import Final

from tests.guests.cache import BuildError

# Offsets in the setup header, from the kernel's x86 boot protocol document.
SETUP_SECTORS_AT: Final = 0x1F1
MAGIC_AT: Final = 0x202
PAYLOAD_AT: Final = 0x248
SECTOR_BYTES: Final = 512
SIZE_FIELD_BYTES: Final = 4  # the build appends the unpacked size to the payload

UNPACKERS: Final[dict[bytes, tuple[str, ...]]] = {
    b"\x1f\x8b": ("gzip", "-dc"),
    b"\xfd7zXZ": ("xz", "-dc", "--single-stream"),
    b"\x02\x21\x4c\x18": ("lz4", "-dc"),
    b"\x28\xb5\x2f\xfd": ("zstd", "-dc"),
}


def payload(image: bytes) -> bytes:
    """Return the compressed kernel inside a bzImage.

    Raises:
        BuildError: this is no bzImage with a payload.
    """
    if image[MAGIC_AT : MAGIC_AT + 4] != b"HdrS":
        raise BuildError("not a bzImage: no HdrS")
    offset, length = struct.unpack_from("<II", image, PAYLOAD_AT)
    start = (image[SETUP_SECTORS_AT] + 1) * SECTOR_BYTES + offset
    found = image[start : start + length]
    if not length or len(found) != length:
        raise BuildError(f"payload of {length} bytes at {start:#x} is not in the image")
    return found


def unpack(image: bytes) -> bytes:
    """Return the ELF file that a bzImage carries.

    Raises:
        BuildError: unknown compression, or what comes out is not an ELF file.
    """
    packed = payload(image)
    for magic, command in UNPACKERS.items():
        if packed.startswith(magic):
            done = subprocess.run(
                command,
                input=packed[:-SIZE_FIELD_BYTES],
                capture_output=True,
                check=False,
            )
            if not done.stdout.startswith(b"\x7fELF"):
                raise BuildError(f"{command[0]}: no ELF file: {done.stderr.decode()}")
            return done.stdout
    raise BuildError(f"unknown compression {packed[:6].hex()}")
