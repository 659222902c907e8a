# SPDX-License-Identifier: BSD-3-Clause
"""A balloon whose process is killed at each of its steps, and the process that takes its place."""

from __future__ import annotations

import os
import struct
from typing import TYPE_CHECKING

import pytest

from devices.virtio.balloon.device import DEFLATE_QUEUE as DEFLATE
from devices.virtio.balloon.device import FREE_PAGE_QUEUE as FREE_PAGE
from devices.virtio.balloon.device import HINT_SECONDS, Balloon, BalloonSpec
from devices.virtio.balloon.device import INFLATE_QUEUE as INFLATE
from devices.virtio.balloon.device import REPORTING_QUEUE as REPORTING
from devices.virtio.balloon.device import STATS_QUEUE as STATS
from devices.virtio.balloon.state import VIRTIO_BALLOON_CMD_ID_STOP
from devices.virtio.commands import AdjustTarget, BalloonState, Command, SetTarget, TellState
from devices.virtio.saved_state import MAX_STATE_BYTES
from sys_util.guest_memory import GuestMemory
from tests.support.commands import ask_balloon
from tests.support.device_context import DriverSide
from tests.support.driver_queue import WRITE, Desc
from tests.support.killed import each_kill, shared_state

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.usefixtures("every_line_is_expected")

PAGE = 4096
MIB = 1 << 20
GUEST_BYTES = 12 * MIB
POOL = 8 * MIB  # queues and buffers are below
POOL_PFN = POOL // PAGE
ACTUAL_OFFSET, POISON_OFFSET = 4, 12
SPEC = BalloonSpec(size_bytes=MIB, page_reporting=True)


class Rig(DriverSide):
    """Processes that come and go over the same memory."""

    def __init__(self) -> None:
        memory = GuestMemory.create([(0, GUEST_BYTES)])
        super().__init__(Balloon(SPEC), memory, saved=shared_state())
        memory.write(POOL, b"\xab" * (64 * PAGE))
        self.start()

    def take_over(self) -> None:
        self.replace(Balloon(SPEC))

    def seen(self) -> tuple[int, ...]:
        return (*super().seen(), os.fstat(self.memory.fd).st_blocks)

    def submit_pages(self, queue: int, *pfns: int) -> None:
        self.queues[queue].submit([struct.pack(f"<{len(pfns)}I", *pfns)])

    def page(self, pfn: int) -> bytes:
        return self.memory.read(pfn * PAGE, 1)

    def config(self) -> tuple[int, int, int, int]:
        pages, actual, cmd_id, poison = struct.unpack("<IIII", self.device.config())
        return pages, actual, cmd_id, poison

    def ask(self, command: Command) -> BalloonState:
        return ask_balloon(self.device, command)

    def send_stats(self, *values: int) -> None:
        pairs = (struct.pack("<HQ", tag, value) for tag, value in enumerate(values))
        self.queues[STATS].submit([b"".join(pairs)])

    def close(self) -> None:
        super().close()
        self.memory.close()


@pytest.fixture
def rig() -> Iterator[Rig]:
    rig = Rig()
    yield rig
    rig.close()


def test_pages_are_given_back_and_no_page_that_was_deflated_meanwhile() -> None:
    def make() -> Rig:
        rig = Rig()
        rig.submit_pages(INFLATE, POOL_PFN)
        rig.kick(INFLATE)
        assert len(rig.queues[INFLATE].collect()) == 1
        rig.submit_pages(DEFLATE, POOL_PFN)
        rig.kick(DEFLATE)
        rig.memory.write(POOL, b"in use again")
        for pfn in (POOL_PFN + 1, POOL_PFN + 2):
            rig.submit_pages(INFLATE, pfn)
        return rig

    for rig in each_kill(make, lambda rig: rig.kick(INFLATE)):
        rig.take_over()
        assert len(rig.queues[INFLATE].collect()) == 2
        assert rig.memory.read(POOL, 12) == b"in use again"
        found = [rig.page(POOL_PFN + n) for n in range(1, 4)]
        assert found == [b"\0", b"\0", b"\xab"]


def test_reported_pages_are_given_back_while_the_driver_keeps_them() -> None:
    def make() -> Rig:
        rig = Rig()
        rig.queues[REPORTING].offer(0, {0: Desc(POOL, 2 * PAGE, WRITE)})
        return rig

    for rig in each_kill(make, lambda rig: rig.kick(REPORTING)):
        rig.take_over()
        assert [tuple(used) for used in rig.queues[REPORTING].take_used()] == [(0, 0)]
        assert [rig.page(POOL_PFN + n) for n in range(3)] == [b"\0", b"\0", b"\xab"]


def test_poison_is_not_forgotten() -> None:
    def write_poison(rig: Rig) -> None:
        rig.device.write_config(POISON_OFFSET, b"\xaa" * 4)

    for rig in each_kill(Rig, write_poison):
        rig.take_over()
        write_poison(rig)  # the vmm repeats what was not answered
        rig.take_over()
        rig.queues[REPORTING].offer(0, {0: Desc(POOL, PAGE, WRITE)})
        rig.kick(REPORTING)
        assert rig.page(POOL_PFN) == b"\xab"


@pytest.mark.parametrize("command", [SetTarget(700), AdjustTarget(444)])
def test_target_is_the_old_or_the_new_one(command: Command) -> None:
    found = []
    for rig in each_kill(Rig, lambda rig: rig.ask(command)):
        rig.take_over()
        found.append(rig.config()[0])
    assert found == sorted(found)
    assert set(found) == {256, 700}


def test_size_that_the_driver_wrote_stays(rig: Rig) -> None:
    rig.device.write_config(ACTUAL_OFFSET, (99).to_bytes(4, "little"))
    rig.take_over()
    assert rig.config()[:2] == (256, 99)
    assert rig.ask(TellState()).actual_pages == 99
    rig.reset()
    rig.take_over()
    assert rig.config() == (256, 0, 0, 0)


def test_each_buffer_of_statistics_is_counted_once() -> None:
    def make() -> Rig:
        rig = Rig()
        rig.send_stats(1, 2)
        rig.kick(STATS)
        rig.ask(TellState(refresh=True))
        assert len(rig.queues[STATS].collect()) == 1
        rig.send_stats(3, 4, 5)
        return rig

    for rig in each_kill(make, lambda rig: rig.kick(STATS)):
        rig.take_over()
        for _ in range(2):
            state = rig.ask(TellState())
            assert (state.updates, state.stats) == (2, ((0, 3), (1, 4), (2, 5)))
            rig.take_over()
        assert rig.queues[STATS].collect() == []
        rig.ask(TellState(refresh=True))
        assert len(rig.queues[STATS].collect()) == 1
        rig.send_stats(6)
        rig.kick(STATS)
        assert rig.ask(TellState()).updates == 3


def test_statistics_are_asked_for_wherever_the_process_ends() -> None:
    def make() -> Rig:
        rig = Rig()
        rig.send_stats(1)
        rig.kick(STATS)
        return rig

    for rig in each_kill(make, lambda rig: rig.ask(TellState(refresh=True))):
        rig.take_over()
        rig.ask(TellState(refresh=True))  # the vmm heard no answer
        assert len(rig.queues[STATS].collect()) == 1
        rig.send_stats(2)
        rig.kick(STATS)
        assert rig.ask(TellState()).updates == 2


def test_round_of_hints_goes_on_and_ends_in_time() -> None:
    def make() -> Rig:
        rig = Rig()
        rig.ask(TellState(hint=True))
        cmd_id = rig.config()[2]
        queue = rig.queues[FREE_PAGE]
        queue.submit([struct.pack("<I", cmd_id)])
        queue.submit(into=[PAGE])
        queue.submit([struct.pack("<I", VIRTIO_BALLOON_CMD_ID_STOP)])
        return rig

    for rig in each_kill(make, lambda rig: rig.kick(FREE_PAGE)):
        rig.take_over()
        assert len(rig.queues[FREE_PAGE].collect()) == 3
        state = rig.ask(TellState())
        assert state.hint_done is True
        assert state.hinted_bytes in (0, PAGE)  # a number for the user
        rig.context.advance(HINT_SECONDS)


def test_round_that_the_driver_does_not_end_is_ended_by_the_next_process(rig: Rig) -> None:
    rig.ask(TellState(hint=True))
    rig.take_over()
    assert rig.ask(TellState()).hint_done is False
    rig.context.advance(HINT_SECONDS)
    assert rig.ask(TellState()).hint_done is True
    assert rig.context.config_changes == 1


def test_what_was_given_back_is_counted_on(rig: Rig) -> None:
    rig.submit_pages(INFLATE, POOL_PFN)
    rig.kick(INFLATE)
    rig.take_over()
    assert rig.ask(TellState()).released_bytes == PAGE


GOOD: dict[str, object] = {"state": [1, 1, 0, 0, 0, 0, 0, 0, -1], "stats": [], "released": 0}


@pytest.mark.parametrize(
    "fields",
    [
        {},
        GOOD | {"state": None},
        GOOD | {"state": [0] * 8},
        GOOD | {"state": [GUEST_BYTES // PAGE + 1, 1, 0, 0, 0, 0, 0, 0, -1]},
        *(
            GOOD | {"state": [*[1] * at, value, *[1] * (8 - at)]}
            for at, value in [
                *((0, -1), (0, "1"), (0, True), (1, 1 << 32), (2, -1), (3, 1 << 63), (4, 1 << 32)),
                *((5, -1), (6, 1 << 32), (7, 2), (8, 1 << 16), (8, -2), (8, 0.5)),
            ]
        ),
        GOOD | {"stats": {}},
        GOOD | {"stats": [[1, 1]] * 17},
        GOOD | {"stats": [[1]]},
        GOOD | {"stats": [[1, -1]]},
        GOOD | {"stats": [[16, 1]]},
        GOOD | {"stats": [["1", 1]]},
        GOOD | {"released": -1},
        GOOD | {"released": 1 << 63},
        GOOD | {"released": None},
    ],
)
def test_nonsense_of_the_last_process_is_one_line_and_no_more(
    rig: Rig, fields: dict[str, object], lines: list[str]
) -> None:
    rig.context.saved.store(fields)
    rig.take_over()
    (line,) = lines
    assert "saved state is not used" in line
    lines.clear()
    assert rig.config() == (256, 0, 0, 0)
    assert rig.ask(SetTarget(3)).target_pages == 3


def test_state_of_a_driver_that_knows_everything_fits(rig: Rig) -> None:
    rig.send_stats(*[(1 << 64) - 1] * 20)
    rig.kick(STATS)
    assert len(rig.ask(TellState()).stats) == 16
    assert MAX_STATE_BYTES > 16 * 11 + 9 * 9 + 100
