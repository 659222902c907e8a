# SPDX-License-Identifier: BSD-3-Clause
"""The debug console: a magic number to read, bytes to write."""

from __future__ import annotations

import pytest

from devices.debugcon import DebugConsole


class FakeSink:
    def __init__(self) -> None:
        self.data = b""

    def write(self, data: bytes) -> None:
        self.data += data


def test_read_answers_the_magic_number() -> None:
    assert DebugConsole(FakeSink()).read(0, 1) == 0xE9


@pytest.mark.parametrize(("size", "value"), [(1, 0x41), (2, 0x4241), (4, 0x44434241)])
def test_write_passes_the_byte_of_its_port_on(size: int, value: int) -> None:
    sink = FakeSink()
    DebugConsole(sink).write(0, size, value)
    assert sink.data == b"A"
