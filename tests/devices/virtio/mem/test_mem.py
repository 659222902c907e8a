# SPDX-License-Identifier: BSD-3-Clause
"""Memory that a guest plugs and unplugs: what it may ask for, and what it is answered."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

import pytest

from devices.virtio.commands import Obeyed, SetRequested, SetTarget
from devices.virtio.device import CommandError
from tests.support.driver_queue import WRITE, Desc
from tests.support.mem_rig import (
    ACK,
    BLOCK,
    BLOCKS,
    BUSY,
    ERROR,
    HOT,
    INACCESSIBLE,
    MIXED,
    NACK,
    PLUG,
    PLUGGED,
    STATE,
    UNPLUG,
    UNPLUG_ALL,
    UNPLUGGED,
    Config,
    MemRig,
    request,
)

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture
def mem() -> Iterator[MemRig]:
    mem = MemRig()
    mem.start()
    yield mem
    mem.close()


def test_configuration_is_as_the_specification_has_it(mem: MemRig) -> None:
    size = BLOCKS * BLOCK
    assert len(mem.device.config()) == 56
    assert mem.config() == Config(BLOCK, 0, HOT, size, size, 0, size)
    assert mem.device.device_type == 24
    assert mem.device.features() == INACCESSIBLE


def test_plugged_block_is_memory_once_the_vmm_has_said_so(mem: MemRig) -> None:
    mem.send(request(PLUG, 1, 2))
    assert mem.responses() == []
    mem.answer()
    assert mem.response() == ACK
    assert mem.config().plugged_size == 2 * BLOCK
    assert (mem.context.config_changes, mem.context.config_changes_by_driver) == (0, 1)
    assert mem.interrupted(0)
    mem.memory.write(HOT + 3 * BLOCK - 1, b"x")


def test_unplugged_block_goes_back_to_the_host(mem: MemRig) -> None:
    mem.do(PLUG, 0, 4)
    before = mem.allocated()
    mem.memory.write(HOT + BLOCK, bytes([1]) * 4096)
    mem.memory.write(HOT + 2 * BLOCK, bytes([1]) * 4096)
    assert mem.allocated() > before
    assert mem.do(UNPLUG, 1, 2) == ACK
    assert mem.allocated() <= before
    assert mem.config().plugged_size == 2 * BLOCK
    assert mem.do(PLUG, 1, 2) == ACK
    assert mem.memory.read(HOT + BLOCK, 1) == b"\0"


def test_everything_is_unplugged(mem: MemRig) -> None:
    mem.do(PLUG, 0, 3)
    mem.do(PLUG, 5, 1)
    assert mem.do(UNPLUG_ALL) == ACK
    assert mem.config().plugged_size == 0
    assert mem.do(UNPLUG_ALL) == ACK


def test_vmm_that_cannot_makes_the_driver_try_again(mem: MemRig) -> None:
    for _ in range(100):
        mem.send(request(PLUG, 0, 1))
        mem.answer(done=False)
        assert mem.response() == BUSY
    assert mem.config().plugged_size == 0
    assert mem.do(PLUG, 0, 1) == ACK


@pytest.mark.parametrize(
    ("sent", "response"),
    [
        pytest.param(request(PLUG, 0, 1), ERROR, id="plugged-already"),
        pytest.param(request(PLUG, 1, 3), ERROR, id="plugged-in-part"),
        pytest.param(request(UNPLUG, 3, 1), ERROR, id="not-plugged"),
        pytest.param(request(UNPLUG, 1, 2), ERROR, id="not-plugged-in-part"),
        pytest.param(request(PLUG, 4, 0), ERROR, id="no-blocks"),
        pytest.param(request(PLUG, 4, 5), ERROR, id="over-the-end"),
        pytest.param(request(PLUG, 8, 1), ERROR, id="behind-the-end"),
        pytest.param(request(PLUG, 4, 0xFFFF), ERROR, id="far-over-the-end"),
        pytest.param(request(PLUG, addr=HOT + 4096, count=1), ERROR, id="not-aligned"),
        pytest.param(request(PLUG, addr=0, count=1), ERROR, id="memory-of-the-start"),
        pytest.param(request(PLUG, addr=(1 << 64) - BLOCK, count=2), ERROR, id="wraps"),
        pytest.param(request(STATE, 7, 2), ERROR, id="state-over-the-end"),
        pytest.param(request(4, 0, 1), ERROR, id="unknown"),
        pytest.param(request(0xFFFF, 0, 1), ERROR, id="far-unknown"),
    ],
)
def test_nonsense_is_answered_and_changes_nothing(mem: MemRig, sent: bytes, response: int) -> None:
    mem.do(PLUG, 0, 2)
    mem.send(sent)
    assert mem.asked() == []
    assert mem.response() == response
    assert mem.area.runs() == [(0, 2)]


@pytest.mark.parametrize(
    ("parts", "room"),
    [
        pytest.param((request(PLUG, 0, 1)[:23],), 10, id="short"),
        pytest.param((), 10, id="empty"),
        pytest.param((request(PLUG, 0, 1),), 9, id="no-room"),
        pytest.param((request(PLUG, 0, 1),), 0, id="no-response-wanted"),
    ],
)
def test_malformed_request_goes_back_unused(
    mem: MemRig, parts: tuple[bytes, ...], room: int, lines: list[str]
) -> None:
    mem.queues[0].submit(list(parts), [room] if room else [])
    mem.kick(0)
    assert [used.len for used in mem.queues[0].take_used()] == [0]
    assert len(lines) == 1
    assert mem.asked() == []


def test_request_in_single_bytes_is_the_same(mem: MemRig) -> None:
    sent = request(STATE, 0, 1)
    mem.queues[0].submit([sent[at : at + 8] for at in range(0, 24, 8)], [1, 9])
    mem.kick(0)
    ((_, written, data),) = mem.queues[0].collect()
    assert (written, data) == (10, struct.pack("<H6xH", ACK, UNPLUGGED))


def test_state_of_blocks(mem: MemRig) -> None:
    mem.do(PLUG, 2, 2)
    for first, count, state in ((0, 2, UNPLUGGED), (2, 2, PLUGGED), (1, 2, MIXED), (0, 8, MIXED)):
        mem.send(request(STATE, first, count))
        assert mem.responses() == [(ACK, state)]


def test_more_than_was_asked_for_is_refused(mem: MemRig) -> None:
    mem.device.command(SetRequested(3 * BLOCK))
    assert mem.do(PLUG, 0, 3) == ACK
    assert mem.do(PLUG, 3, 1) == NACK
    mem.device.command(SetRequested(BLOCK))
    assert mem.do(UNPLUG, 0, 1) == ACK
    assert mem.do(PLUG, 0, 1) == NACK


def test_driver_that_would_touch_unplugged_memory_gets_none() -> None:
    mem = MemRig(without=INACCESSIBLE)
    mem.start()
    assert mem.do(PLUG, 0, 1) == NACK
    mem.close()


def test_wish_of_the_user_is_told_once(mem: MemRig) -> None:
    assert mem.device.command(SetRequested(BLOCK)) == Obeyed()
    assert mem.device.command(SetRequested(BLOCK)) == Obeyed()
    assert mem.config().requested_size == BLOCK
    assert mem.context.config_changes == 1
    with pytest.raises(CommandError, match="know no balloon"):
        mem.device.command(SetTarget(1))


def test_requests_wait_for_the_one_before_them(mem: MemRig) -> None:
    for block in range(3):
        mem.send(request(PLUG, block, 1))
    assert mem.context.asked_blocks == [(PLUG, 0, 1)]
    for _ in range(3):
        mem.answer()
        mem.kick(0)
        assert mem.response() == ACK
    assert mem.area.runs() == [(0, 3)]


def test_pause_puts_a_request_back_and_it_is_carried_out_once(mem: MemRig) -> None:
    mem.send(request(PLUG, 0, 1))
    mem.worker.pause()
    (change,) = mem.asked()
    mem.carry_out(*change)
    mem.context.on_blocks(True)
    assert mem.responses() == []
    mem.worker.resume()
    mem.kick(0)
    assert mem.asked() == []
    assert mem.response() == ACK


def test_reset_keeps_what_is_plugged(mem: MemRig) -> None:
    mem.do(PLUG, 0, 2)
    mem.send(request(PLUG, 4, 1))
    mem.reset()
    mem.asked()
    mem.context.on_blocks(True)  # the answer comes too late
    mem.start()
    assert mem.config().plugged_size == 2 * BLOCK
    assert mem.do(UNPLUG, 0, 1) == ACK


def test_ring_of_malformed_chains_ends(mem: MemRig, lines: list[str]) -> None:
    for head in range(16):
        mem.queues[0].offer(head, {head: Desc(HOT, 16, WRITE)})  # no memory there
    mem.kick(0)
    assert len(mem.queues[0].take_used()) == 16
    assert lines
