# SPDX-License-Identifier: BSD-3-Clause
"""The balloon: pages that go and come back, the target, and a driver that does as it likes."""

from __future__ import annotations

import struct

import pytest

from crosvm_py.kinds.table import DEVICE_KINDS
from devices.virtio.balloon.device import DEFLATE_QUEUE as DEFLATE
from devices.virtio.balloon.device import INFLATE_QUEUE as INFLATE
from devices.virtio.balloon.device import MAX_CHAINS_PER_TURN, Balloon, BalloonSpec
from devices.virtio.balloon.device import REPORTING_QUEUE as REPORTING
from devices.virtio.balloon.device import STATS_QUEUE as STATS
from devices.virtio.commands import AdjustTarget, Command, SetLink, SetTarget, TellState
from devices.virtio.counters import named
from devices.virtio.device import CommandError
from devices.virtio.queue.split_queue import QueueError
from tests.support.balloon_rig import (
    GUEST_BYTES,
    HIGH,
    HINT,
    MIB,
    PAGE,
    POISON,
    POOL,
    POOL_PFN,
    REPORTS,
    STATS_VQ,
    BalloonRig,
    stat,
)
from tests.support.driver_queue import WRITE, Desc

# What it is.


@pytest.mark.parametrize(
    ("spec", "features", "queues"),
    [
        pytest.param(BalloonSpec(), 0b011111, 4, id="default"),
        pytest.param(BalloonSpec(deflate_on_oom=False), 0b011011, 4, id="no-oom"),
        pytest.param(BalloonSpec(page_reporting=True), 0b111111, 5, id="reporting"),
    ],
)
def test_offers_what_was_asked_for(spec: BalloonSpec, features: int, queues: int) -> None:
    device = Balloon(spec)
    assert (device.features(), len(device.queue_sizes)) == (features, queues)


def test_size_at_the_start_is_the_first_target() -> None:
    balloon = BalloonRig(BalloonSpec(size_bytes=3 * MIB))
    assert balloon.config() == (3 * MIB // PAGE, 0, 0, 0)
    balloon.close()


def test_size_at_the_start_is_never_more_than_the_memory() -> None:
    balloon = BalloonRig(BalloonSpec(size_bytes=1 << 40))
    assert balloon.config()[0] == (GUEST_BYTES + MIB) // PAGE
    balloon.close()


# Inflating and deflating.


def test_inflated_pages_leave_the_host_and_read_as_zeros(balloon: BalloonRig) -> None:
    before = balloon.allocated()
    balloon.send_pages(INFLATE, *range(POOL_PFN + 9, POOL_PFN - 1, -1))
    assert balloon.used(INFLATE) == [0]
    assert before - balloon.allocated() >= 9  # its message took a page at most
    assert balloon.memory.read(POOL, 10 * PAGE) == bytes(10 * PAGE)
    assert balloon.memory.read(POOL + 10 * PAGE, 1) == b"\xab"


def test_deflated_page_is_a_new_one_when_it_is_touched(balloon: BalloonRig) -> None:
    balloon.send_pages(INFLATE, POOL_PFN)
    balloon.send_pages(DEFLATE, POOL_PFN)
    balloon.memory.write(POOL, b"again")
    assert balloon.memory.read(POOL, 6) == b"again\0"


@pytest.mark.parametrize("queue", [INFLATE, DEFLATE])
def test_list_in_many_descriptors_is_one_list(balloon: BalloonRig, queue: int) -> None:
    data = struct.pack("<3I", POOL_PFN, POOL_PFN + 1, POOL_PFN + 2)
    balloon.queues[queue].submit([data[:3], data[3:7], data[7:]])
    balloon.kick(queue)
    assert balloon.used(queue) == [0]
    zeros = balloon.memory.read(POOL, 3 * PAGE) == bytes(3 * PAGE)
    assert zeros == (queue == INFLATE)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        pytest.param(struct.pack("<I", 0xFFFF_FFFF), "1 pages are no guest memory", id="far"),
        pytest.param(struct.pack("<2I", GUEST_BYTES // PAGE, POOL_PFN), "1 pages", id="hole"),
        pytest.param(struct.pack("<IH", POOL_PFN, 7), "2 bytes left over", id="odd"),
        pytest.param(b"\1", "1 bytes left over", id="one-byte"),
        pytest.param(struct.pack("<I", POOL_PFN) * 70000, "bytes left over", id="huge"),
    ],
)
def test_bad_list_comes_back_and_is_named(
    balloon: BalloonRig, data: bytes, reason: str, lines: list[str]
) -> None:
    balloon.send(INFLATE, data)
    assert balloon.used(INFLATE) == [0]
    assert reason in lines[-1]
    good = len(data) >= 4 and POOL_PFN in struct.unpack_from(f"<{len(data) // 4}I", data)
    assert (balloon.memory.read(POOL, PAGE) == bytes(PAGE)) == good
    balloon.send_pages(INFLATE, POOL_PFN + 1)
    assert balloon.memory.read(POOL + PAGE, PAGE) == bytes(PAGE)


def test_deflating_what_was_never_inflated_changes_nothing(balloon: BalloonRig) -> None:
    before = balloon.memory.read(POOL, 4 * PAGE)
    balloon.send_pages(DEFLATE, POOL_PFN, POOL_PFN, 0xFFFF_FFFF)
    assert balloon.used(DEFLATE) == [0]
    assert balloon.memory.read(POOL, 4 * PAGE) == before


def test_guest_that_balloons_its_own_rings_needs_a_reset_that_heals(balloon: BalloonRig) -> None:
    with pytest.raises(QueueError, match="ahead of a queue"):
        balloon.send_pages(INFLATE, *range(1, 16))
    balloon.reset()
    balloon.start()
    balloon.send_pages(INFLATE, POOL_PFN)
    assert balloon.used(INFLATE) == [0]
    assert balloon.memory.read(POOL, PAGE) == bytes(PAGE)


def test_counters_tell_pages_and_errors(balloon: BalloonRig) -> None:
    balloon.send_pages(INFLATE, POOL_PFN, POOL_PFN + 1, 0xFFFF_FFFF)
    balloon.send_pages(DEFLATE, POOL_PFN)
    balloon.show(REPORTING, (POOL, 2 * PAGE))
    balloon.show(REPORTING, (POOL, PAGE), flags=0)
    told = named(balloon.context.counters.cells, DEVICE_KINDS["balloon"].counters)
    assert (told["pages_inflated"], told["pages_deflated"]) == (3, 1)
    assert (told["bytes_reported"], told["errors"]) == (2 * PAGE, 2)


def test_host_that_takes_nothing_back_is_no_end(
    balloon: BalloonRig, monkeypatch: pytest.MonkeyPatch, lines: list[str]
) -> None:
    def refuse(*_: int) -> None:
        raise OSError(12, "no memory")

    monkeypatch.setattr("devices.virtio.balloon.memory.fallocate", refuse)
    balloon.send_pages(INFLATE, POOL_PFN)
    balloon.show(REPORTING, (POOL, PAGE))
    assert balloon.used(INFLATE) == [0]
    assert [line for line in lines if "the host takes no pages back" in line]
    assert balloon.memory.read(POOL, 1) == b"\xab"


# Free page reporting.


def test_reported_pages_leave_the_host(balloon: BalloonRig) -> None:
    balloon.show(REPORTING, (POOL, 4 * PAGE), (POOL + 8 * PAGE, PAGE), (HIGH, PAGE))
    holes = [at for at in range(16) if not any(balloon.memory.read(POOL + at * PAGE, PAGE))]
    assert holes == [0, 1, 2, 3, 8]
    assert balloon.ask(TellState()).released_bytes == 6 * PAGE


def test_report_with_a_readable_buffer_is_refused(balloon: BalloonRig, lines: list[str]) -> None:
    balloon.show(REPORTING, (POOL, PAGE), flags=0)
    assert "device-readable buffer on reporting_vq" in lines[-1]
    assert balloon.memory.read(POOL, 1) == b"\xab"


def test_same_page_reported_many_times_is_one_hole(balloon: BalloonRig) -> None:
    balloon.show(REPORTING, *[(POOL, PAGE)] * 16)
    assert not any(balloon.memory.read(POOL, PAGE))


@pytest.mark.parametrize(("poison", "kept"), [(0, False), (0xAAAA_AAAA, True)])
def test_pages_that_must_stay_poisoned_are_kept(
    balloon: BalloonRig, poison: int, kept: bool
) -> None:
    balloon.device.write_config(12, struct.pack("<I", poison))
    balloon.show(REPORTING, (POOL, PAGE))
    assert any(balloon.memory.read(POOL, PAGE)) is kept
    assert balloon.config()[3] == poison


def test_poison_without_its_feature_means_nothing() -> None:
    balloon = BalloonRig(BalloonSpec(page_reporting=True), without=POISON)
    balloon.fill_pool()
    balloon.start()
    balloon.device.write_config(12, b"\xaa" * 4)
    balloon.show(REPORTING, (POOL, PAGE))
    assert not any(balloon.memory.read(POOL, PAGE))
    balloon.close()


@pytest.mark.parametrize(
    ("without", "queues", "reporting"),
    [
        pytest.param(HINT, (0, 1, 2, 3), 3, id="no-hint-compact"),
        pytest.param(HINT | STATS_VQ, (0, 1, 2), 2, id="only-reporting-compact"),
        pytest.param(STATS_VQ, (0, 1, 2, 3), 3, id="no-stats-compact"),
        pytest.param(HINT, (0, 1, 2, 4), 4, id="no-hint-by-the-book"),
        pytest.param(HINT | STATS_VQ, (0, 1, 4), 4, id="only-reporting-by-the-book"),
        pytest.param(STATS_VQ, (0, 1, 3, 4), 4, id="no-stats-by-the-book"),
    ],
)
def test_queues_are_found_with_and_without_gaps(
    without: int, queues: tuple[int, ...], reporting: int
) -> None:
    balloon = BalloonRig(BalloonSpec(page_reporting=True), without=without)
    balloon.fill_pool()
    balloon.start(*queues)
    balloon.show(reporting, (POOL, PAGE))
    assert not any(balloon.memory.read(POOL, PAGE))
    balloon.close()


def test_queue_without_its_feature_does_nothing(lines: list[str]) -> None:
    balloon = BalloonRig(BalloonSpec(page_reporting=True), without=REPORTS)
    balloon.fill_pool()
    balloon.start()
    balloon.show(REPORTING, (POOL, PAGE))
    assert "a queue without its feature" in lines[-1]
    assert balloon.memory.read(POOL, 1) == b"\xab"
    balloon.close()


# The target, and the rest of the configuration.


@pytest.mark.parametrize(
    ("command", "target", "clamped"),
    [
        pytest.param(SetTarget(100), 100, False, id="set"),
        pytest.param(SetTarget(1 << 40), (GUEST_BYTES + MIB) // PAGE, True, id="more-than-memory"),
        pytest.param(AdjustTarget(5), 55, False, id="more"),
        pytest.param(AdjustTarget(-50), 0, False, id="none"),
        pytest.param(AdjustTarget(-51), 0, True, id="less-than-none"),
        pytest.param(AdjustTarget(0), 50, False, id="same"),
    ],
)
def test_target_is_kept_within_the_memory(
    balloon: BalloonRig, command: Command, target: int, clamped: bool
) -> None:
    balloon.ask(SetTarget(50))
    balloon.context.config_changes = 0
    answer = balloon.ask(command)
    assert (answer.target_pages, answer.clamped) == (target, clamped)
    assert balloon.config()[0] == target
    assert balloon.context.config_changes == (target != 50)


def test_command_of_other_devices_is_refused(balloon: BalloonRig) -> None:
    with pytest.raises(CommandError, match="balloon devices know no link"):
        balloon.ask(SetLink(up=True))


@pytest.mark.parametrize(
    ("offset", "data", "field"),
    [
        pytest.param(4, struct.pack("<I", 77), 1, id="actual"),
        pytest.param(12, struct.pack("<I", 77), 3, id="poison"),
    ],
)
def test_driver_writes_its_two_fields(
    balloon: BalloonRig, offset: int, data: bytes, field: int
) -> None:
    balloon.device.write_config(offset, data)
    assert [at for at, value in enumerate(balloon.config()) if value] == [field]


@pytest.mark.parametrize(
    ("offset", "length"), [(0, 4), (8, 4), (4, 2), (6, 2), (4, 8), (5, 4), (16, 4), (0xFFFF, 1)]
)
def test_other_writes_to_the_configuration_change_nothing(
    balloon: BalloonRig, offset: int, length: int
) -> None:
    balloon.device.write_config(offset, b"\xff" * length)
    assert balloon.config() == (0, 0, 0, 0)


def test_reset_forgets_the_driver_and_keeps_the_target(balloon: BalloonRig) -> None:
    balloon.ask(SetTarget(9))
    balloon.device.write_config(4, struct.pack("<I", 9))
    balloon.send(STATS, stat(4, 1))
    balloon.ask(TellState(hint=True))
    balloon.reset()
    assert balloon.config() == (9, 0, 0, 0)
    state = balloon.ask(TellState())
    assert (state.has_driver, state.stats, state.hint_done) == (False, (), True)


def test_a_flood_is_served_in_turns() -> None:
    balloon = BalloonRig(BalloonSpec(page_reporting=True))
    balloon.start(size=128)
    queue = balloon.queues[REPORTING]
    queue.write_descs({0: Desc(POOL, PAGE, WRITE)})
    for _ in range(128):
        queue.stage(0)
    queue.publish()
    assert balloon.worker.on_kick(REPORTING) is True
    assert len(queue.take_used()) == MAX_CHAINS_PER_TURN
    balloon.kick(REPORTING)
    assert len(queue.take_used()) == 128 - MAX_CHAINS_PER_TURN
    balloon.close()


def test_paused_balloon_takes_nothing(balloon: BalloonRig) -> None:
    balloon.worker.pause()
    balloon.queues[REPORTING].offer(0, {0: Desc(POOL, PAGE, WRITE)})
    balloon.kick(REPORTING)
    assert balloon.memory.read(POOL, 1) == b"\xab"
    balloon.worker.resume()
    balloon.worker.on_kick(REPORTING)
    assert not any(balloon.memory.read(POOL, PAGE))
