# SPDX-License-Identifier: BSD-3-Clause
"""pvpanic: which writes are a panic."""

from __future__ import annotations

import pytest

from devices.pvpanic import PvPanic


class Calls:
    def __init__(self) -> None:
        self.count = 0

    def __call__(self) -> None:
        self.count += 1


def test_read_offers_both_events() -> None:
    assert PvPanic(Calls()).read(0, 1) == 0x03


@pytest.mark.parametrize(
    ("value", "panics", "crash_loads"),
    [
        pytest.param(0x00, 0, 0, id="nothing"),
        pytest.param(0x01, 1, 0, id="panic"),
        pytest.param(0x02, 0, 1, id="crash kernel"),
        pytest.param(0x03, 1, 0, id="panic wins"),
        pytest.param(0xFC, 0, 0, id="unknown"),
    ],
)
def test_write_reports_the_event(value: int, panics: int, crash_loads: int) -> None:
    on_panic, on_crash_loaded = Calls(), Calls()
    PvPanic(on_panic, on_crash_loaded).write(0, 1, value)
    assert (on_panic.count, on_crash_loaded.count) == (panics, crash_loads)


def test_crash_kernel_without_a_listener_is_ignored() -> None:
    on_panic = Calls()
    PvPanic(on_panic).write(0, 1, 0x02)
    assert on_panic.count == 0
