# SPDX-License-Identifier: BSD-3-Clause
"""A process of virtio-mem that is killed at each of its steps, and the one that follows it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from devices.virtio.commands import SetRequested
from devices.virtio.mem.device import Mem
from tests.support.mem_rig import ACK, BLOCK, BLOCKS, ERROR, PLUG, UNPLUG, MemRig, request

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture
def mem() -> Iterator[MemRig]:
    mem = MemRig()
    mem.start()
    yield mem
    mem.close()


def take_over(mem: MemRig) -> None:
    mem.replace(Mem(mem.spec))


def test_request_that_the_vmm_has_not_seen_is_sent_again(mem: MemRig) -> None:
    mem.send(request(PLUG, 2, 1))
    mem.asked()  # lost with the process
    take_over(mem)
    mem.answer()
    assert mem.response() == ACK
    assert mem.area.runs() == [(2, 3)]


@pytest.mark.parametrize("kind", [PLUG, UNPLUG])
def test_request_that_the_vmm_has_carried_out_is_answered(mem: MemRig, kind: int) -> None:
    if kind == UNPLUG:
        mem.do(PLUG, 2, 1)
        mem.memory.write(mem.area.start + 2 * BLOCK, b"x")
    mem.send(request(kind, 2, 1))
    (change,) = mem.asked()
    mem.carry_out(*change)
    before = mem.allocated()
    take_over(mem)
    assert mem.asked() == []
    assert mem.response() == ACK
    assert mem.allocated() < before or kind == PLUG  # the hole was made, too


def test_another_request_for_what_is_there_is_still_nonsense(mem: MemRig) -> None:
    mem.do(PLUG, 2, 1)
    mem.do(PLUG, 3, 1)
    take_over(mem)
    assert mem.do(PLUG, 2, 1) == ERROR
    assert mem.do(PLUG, 3, 1) == ERROR


def test_wish_of_the_user_and_what_is_plugged_survive(mem: MemRig) -> None:
    mem.do(PLUG, 0, 2)
    mem.device.command(SetRequested(5 * BLOCK))
    take_over(mem)
    assert mem.config().requested_size == 5 * BLOCK
    assert mem.config().plugged_size == 2 * BLOCK


def test_next_process_gives_back_what_is_not_plugged(mem: MemRig) -> None:
    mem.do(PLUG, 3, 1)
    before = mem.allocated()
    mem.memory.write(mem.area.start + 3 * BLOCK, b"x")
    mem.area.hide(3, 1)
    take_over(mem)
    assert mem.allocated() <= before


@pytest.mark.parametrize(
    "fields",
    [
        pytest.param({}, id="nothing"),
        pytest.param({"requested": -1, "pending": []}, id="negative"),
        pytest.param({"requested": BLOCKS * BLOCK + 1, "pending": []}, id="too-much"),
        pytest.param({"requested": True, "pending": []}, id="no-number"),
        pytest.param({"requested": 0, "pending": None}, id="no-request"),
        pytest.param({"requested": 0, "pending": [0, 0]}, id="short"),
        pytest.param({"requested": 0, "pending": [0, 0, 0]}, id="no-blocks"),
        pytest.param({"requested": 0, "pending": [0, 7, 2]}, id="over-the-end"),
        pytest.param({"requested": 0, "pending": [3, 0, 1]}, id="state"),
        pytest.param({"requested": 0, "pending": [0, "0", 1]}, id="text"),
    ],
)
def test_saved_nonsense_is_not_believed(
    mem: MemRig, fields: dict[str, object], lines: list[str]
) -> None:
    mem.context.saved.store(fields)
    take_over(mem)
    assert mem.config().requested_size == BLOCKS * BLOCK
    assert len(lines) == 1
    assert mem.do(PLUG, 0, 1) == ACK
