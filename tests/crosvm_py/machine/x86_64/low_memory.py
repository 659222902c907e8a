# SPDX-License-Identifier: BSD-3-Clause
"""The first MiB of a guest, for firmware tables to be written into and searched for."""

from __future__ import annotations


class LowMemory:
    def __init__(self) -> None:
        self.content = bytearray(1 << 20)

    def write(self, gpa: int, data: bytes) -> None:
        assert gpa + len(data) <= len(self.content)
        self.content[gpa : gpa + len(data)] = data

    def read(self, gpa: int, length: int) -> bytes:
        assert gpa + length <= len(self.content)
        return bytes(self.content[gpa : gpa + length])
