# SPDX-License-Identifier: BSD-3-Clause
"""The keyboard controller: resets, and probes that end soon."""

from __future__ import annotations

import pytest

from devices.i8042 import I8042, I8042_LENGTH, MAX_PENDING_BYTES, STALE_BYTES

DATA, CONTROL_B, COMMAND = 0, 1, 4


class Resets:
    def __init__(self) -> None:
        self.count = 0

    def __call__(self) -> None:
        self.count += 1


@pytest.fixture
def resets() -> Resets:
    return Resets()


@pytest.fixture
def i8042(resets: Resets) -> I8042:
    return I8042(resets)


def linux_flush(i8042: I8042, buffer_size: int) -> tuple[bool, int]:
    """Empty the buffer as i8042_flush() does: (found a controller, accesses)."""
    count = accesses = 0
    while True:
        accesses += 1
        if not i8042.read(COMMAND, 1) & 0x01:
            return True, accesses
        if count == buffer_size:
            return False, accesses
        count += 1
        accesses += 1
        i8042.read(DATA, 1)


@pytest.mark.parametrize("buffer_size", [pytest.param(16, id="today"), pytest.param(32, id="old")])
def test_linux_probe_ends_with_no_controller(i8042: I8042, buffer_size: int) -> None:
    found, accesses = linux_flush(i8042, buffer_size)
    assert not found
    assert accesses == 2 * buffer_size + 1


def test_patient_driver_empties_the_buffer(i8042: I8042) -> None:
    found, _ = linux_flush(i8042, STALE_BYTES)
    assert found


def test_input_buffer_never_reads_as_full(i8042: I8042) -> None:
    for command in range(0xFF):
        i8042.write(COMMAND, 1, command)
        i8042.write(DATA, 1, 0xED)
        assert not i8042.read(COMMAND, 1) & 0x02


@pytest.mark.parametrize("command", [0xFE, 0xF0, 0xFC])
def test_pulse_of_the_reset_line_resets(i8042: I8042, resets: Resets, command: int) -> None:
    i8042.write(COMMAND, 1, command)
    assert resets.count == 1


@pytest.mark.parametrize("command", [0xFF, 0xF1, 0xEE])
def test_other_pulses_do_not_reset(i8042: I8042, resets: Resets, command: int) -> None:
    i8042.write(COMMAND, 1, command)
    assert resets.count == 0


@pytest.mark.parametrize(("value", "count"), [(0xDE, 1), (0xDF, 0)])
def test_output_port_bit_0_resets_when_low(
    i8042: I8042, resets: Resets, value: int, count: int
) -> None:
    i8042.write(COMMAND, 1, 0xD1)
    i8042.write(DATA, 1, value)
    assert resets.count == count


def test_data_of_0xfe_is_no_reset(i8042: I8042, resets: Resets) -> None:
    i8042.write(DATA, 1, 0xFE)
    assert resets.count == 0


@pytest.mark.parametrize(
    ("command", "answer"),
    [(0xAA, 0x55), (0xA9, 0x01), (0xAB, 0x01), (0xD0, 0x03), (0x20, 0x30)],
)
def test_command_is_answered_at_once_without_stale_bytes(
    i8042: I8042, command: int, answer: int
) -> None:
    i8042.write(COMMAND, 1, command)
    assert i8042.read(COMMAND, 1) & 0x01
    assert i8042.read(DATA, 1) == answer
    assert not i8042.read(COMMAND, 1) & 0x01


def test_configuration_byte_is_kept(i8042: I8042) -> None:
    i8042.write(COMMAND, 1, 0x60)
    i8042.write(DATA, 1, 0x45)
    i8042.write(COMMAND, 1, 0x20)
    assert i8042.read(DATA, 1) == 0x45


def test_mouse_loop_answers_as_the_keyboard(i8042: I8042) -> None:
    i8042.write(COMMAND, 1, 0xD3)
    i8042.write(DATA, 1, 0x5A)
    assert i8042.read(COMMAND, 1) & 0x21 == 0x01
    assert i8042.read(DATA, 1) == 0x5A


def test_bytes_for_a_keyboard_are_bounded(i8042: I8042) -> None:
    i8042.write(COMMAND, 1, 0xAE)
    for _ in range(10 * MAX_PENDING_BYTES):
        i8042.write(DATA, 1, 0xF2)
    count = 0
    while i8042.read(COMMAND, 1) & 0x01:
        assert i8042.read(DATA, 1) == 0xFE
        count += 1
    assert count == MAX_PENDING_BYTES


def test_port_61_ends_calibration_loops(i8042: I8042) -> None:
    i8042.write(CONTROL_B, 1, 0xF1)
    first, second = i8042.read(CONTROL_B, 1), i8042.read(CONTROL_B, 1)
    assert first & 0x2F == 0x21
    assert first ^ second == 0x10


@pytest.mark.parametrize("size", [1, 2, 4, 8])
def test_hostile_accesses_never_raise(i8042: I8042, size: int) -> None:
    for value in (0, 1, 0x60, 0xD1, 0xD4, 0xFE, 0xFF, (1 << 64) - 1):
        for offset in range(I8042_LENGTH):
            i8042.write(offset, size, value & ((1 << (8 * size)) - 1))
            assert 0 <= i8042.read(offset, size) < 1 << (8 * size)
