# SPDX-License-Identifier: BSD-3-Clause
"""The balloon against a driver written from virtio 1.3 §5.5."""

from __future__ import annotations

import os
import struct
from typing import TYPE_CHECKING

import pytest

from crosvm_py.device_process.kinds import DEVICE_KINDS
from devices.virtio import balloon
from devices.virtio.balloon import DEFLATE_QUEUE as DEFLATE
from devices.virtio.balloon import FREE_PAGE_QUEUE as FREE_PAGE
from devices.virtio.balloon import INFLATE_QUEUE as INFLATE
from devices.virtio.balloon import REPORTING_QUEUE as REPORTING
from devices.virtio.balloon import STATS_QUEUE as STATS
from devices.virtio.balloon import Balloon, BalloonSpec
from devices.virtio.balloon_state import FIRST_CMD_ID, VIRTIO_BALLOON_CMD_ID_STOP
from devices.virtio.counters import named
from devices.virtio.device import CommandError
from devices.virtio.queue import QueueError
from sys_util import log
from sys_util.guest_memory import GuestMemory
from tests.support.device_context import DriverSide
from tests.support.driver_queue import NEXT, WRITE, Desc

if TYPE_CHECKING:
    from collections.abc import Iterator

PAGE = 4096
MIB = 1 << 20
GUEST_BYTES = 16 * MIB
HIGH = 1 << 32
POOL = 8 * MIB  # free for the tests: queues and buffers are below
POOL_PFN = POOL // PAGE

HINT = 1 << balloon.VIRTIO_BALLOON_F_FREE_PAGE_HINT
STATS_VQ = 1 << balloon.VIRTIO_BALLOON_F_STATS_VQ
REPORTS = 1 << balloon.VIRTIO_BALLOON_F_REPORTING
POISON = 1 << balloon.VIRTIO_BALLOON_F_PAGE_POISON
NO_EVENT_IDX = 1 << 29


class Rig(DriverSide):
    """A balloon with its driver, and what it logged."""

    def __init__(self, spec: BalloonSpec, *, without: int = 0) -> None:
        memory = GuestMemory.create([(0, GUEST_BYTES), (HIGH, MIB)])
        self.balloon = Balloon(spec)
        self.lines: list[str] = []
        log.set_sink(lambda _level, _module, text: self.lines.append(text))
        super().__init__(self.balloon, memory, without=NO_EVENT_IDX | without)

    def close(self) -> None:
        super().close()
        self.memory.close()
        log.set_sink(log.stderr_sink)

    def fill_pool(self, pages: int = 64) -> None:
        self.memory.write(POOL, b"\xab" * (pages * PAGE))

    def allocated(self) -> int:
        return os.fstat(self.memory.fd).st_blocks * 512 // PAGE

    def send(self, queue: int, *data: bytes) -> None:
        self.queues[queue].submit(list(data))
        self.kick(queue)

    def send_pages(self, queue: int, *pfns: int) -> None:
        self.send(queue, struct.pack(f"<{len(pfns)}I", *pfns))

    def used(self, queue: int) -> list[int]:
        return [used for _, used, _ in self.queues[queue].collect()]

    def show(self, queue: int, *pages: tuple[int, int], flags: int = WRITE) -> None:
        """Offer pages themselves as buffers: address and length of each."""
        last = len(pages) - 1
        table = {
            at: Desc(gpa, length, flags | (NEXT if at < last else 0), at + 1)
            for at, (gpa, length) in enumerate(pages)
        }
        self.queues[queue].offer(0, table)
        self.kick(queue)
        assert [tuple(used) for used in self.queues[queue].take_used()] == [(0, 0)]

    def config(self) -> tuple[int, int, int, int]:
        pages, actual, cmd_id, poison = struct.unpack("<IIII", self.balloon.config())
        return pages, actual, cmd_id, poison

    def ask(self, verb: str, **arguments: object) -> dict[str, object]:
        return self.balloon.command(verb, arguments)


@pytest.fixture
def rig() -> Iterator[Rig]:
    rig = Rig(BalloonSpec(page_reporting=True))
    rig.fill_pool()
    rig.start()
    yield rig
    rig.close()


def stat(tag: int, value: int) -> bytes:
    return struct.pack("<HQ", tag, value)


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
    rig = Rig(BalloonSpec(size_bytes=3 * MIB))
    assert rig.config() == (3 * MIB // PAGE, 0, 0, 0)
    rig.close()


def test_size_at_the_start_is_never_more_than_the_memory() -> None:
    rig = Rig(BalloonSpec(size_bytes=1 << 40))
    assert rig.config()[0] == (GUEST_BYTES + MIB) // PAGE
    rig.close()


# Inflating and deflating.


def test_inflated_pages_leave_the_host_and_read_as_zeros(rig: Rig) -> None:
    before = rig.allocated()
    rig.send_pages(INFLATE, *range(POOL_PFN + 9, POOL_PFN - 1, -1))
    assert rig.used(INFLATE) == [0]
    assert before - rig.allocated() >= 9  # its message took a page at most
    assert rig.memory.read(POOL, 10 * PAGE) == bytes(10 * PAGE)
    assert rig.memory.read(POOL + 10 * PAGE, 1) == b"\xab"


def test_deflated_page_is_a_new_one_when_it_is_touched(rig: Rig) -> None:
    rig.send_pages(INFLATE, POOL_PFN)
    rig.send_pages(DEFLATE, POOL_PFN)
    rig.memory.write(POOL, b"again")
    assert rig.memory.read(POOL, 6) == b"again\0"


@pytest.mark.parametrize("queue", [INFLATE, DEFLATE])
def test_list_in_many_descriptors_is_one_list(rig: Rig, queue: int) -> None:
    data = struct.pack("<3I", POOL_PFN, POOL_PFN + 1, POOL_PFN + 2)
    rig.queues[queue].submit([data[:3], data[3:7], data[7:]])
    rig.kick(queue)
    assert rig.used(queue) == [0]
    zeros = rig.memory.read(POOL, 3 * PAGE) == bytes(3 * PAGE)
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
def test_bad_list_comes_back_and_is_named(rig: Rig, data: bytes, reason: str) -> None:
    rig.send(INFLATE, data)
    assert rig.used(INFLATE) == [0]
    assert reason in rig.lines[-1]
    good = len(data) >= 4 and POOL_PFN in struct.unpack_from(f"<{len(data) // 4}I", data)
    assert (rig.memory.read(POOL, PAGE) == bytes(PAGE)) == good
    rig.send_pages(INFLATE, POOL_PFN + 1)
    assert rig.memory.read(POOL + PAGE, PAGE) == bytes(PAGE)


def test_deflating_what_was_never_inflated_changes_nothing(rig: Rig) -> None:
    before = rig.memory.read(POOL, 4 * PAGE)
    rig.send_pages(DEFLATE, POOL_PFN, POOL_PFN, 0xFFFF_FFFF)
    assert rig.used(DEFLATE) == [0]
    assert rig.memory.read(POOL, 4 * PAGE) == before


def test_guest_that_balloons_its_own_rings_needs_a_reset_that_heals(rig: Rig) -> None:
    with pytest.raises(QueueError, match="ahead of a queue"):
        rig.send_pages(INFLATE, *range(1, 16))
    rig.reset()
    rig.start()
    rig.send_pages(INFLATE, POOL_PFN)
    assert rig.used(INFLATE) == [0]
    assert rig.memory.read(POOL, PAGE) == bytes(PAGE)


def test_counters_tell_pages_and_errors(rig: Rig) -> None:
    rig.send_pages(INFLATE, POOL_PFN, POOL_PFN + 1, 0xFFFF_FFFF)
    rig.send_pages(DEFLATE, POOL_PFN)
    rig.show(REPORTING, (POOL, 2 * PAGE))
    rig.show(REPORTING, (POOL, PAGE), flags=0)
    told = named(rig.context.counters.cells, DEVICE_KINDS["balloon"].counters)
    assert (told["pages_inflated"], told["pages_deflated"]) == (3, 1)
    assert (told["bytes_reported"], told["errors"]) == (2 * PAGE, 2)


def test_host_that_takes_nothing_back_is_no_end(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: int) -> None:
        raise OSError(12, "no memory")

    monkeypatch.setattr("devices.virtio.balloon_memory.fallocate", refuse)
    rig.send_pages(INFLATE, POOL_PFN)
    rig.show(REPORTING, (POOL, PAGE))
    assert rig.used(INFLATE) == [0]
    assert [line for line in rig.lines if "the host takes no pages back" in line]
    assert rig.memory.read(POOL, 1) == b"\xab"


# Free page reporting.


def test_reported_pages_leave_the_host(rig: Rig) -> None:
    rig.show(REPORTING, (POOL, 4 * PAGE), (POOL + 8 * PAGE, PAGE), (HIGH, PAGE))
    holes = [at for at in range(16) if not any(rig.memory.read(POOL + at * PAGE, PAGE))]
    assert holes == [0, 1, 2, 3, 8]
    assert rig.ask("state")["released_bytes"] == 6 * PAGE


def test_report_with_a_readable_buffer_is_refused(rig: Rig) -> None:
    rig.show(REPORTING, (POOL, PAGE), flags=0)
    assert "device-readable buffer on reporting_vq" in rig.lines[-1]
    assert rig.memory.read(POOL, 1) == b"\xab"


def test_same_page_reported_many_times_is_one_hole(rig: Rig) -> None:
    rig.show(REPORTING, *[(POOL, PAGE)] * 16)
    assert not any(rig.memory.read(POOL, PAGE))


@pytest.mark.parametrize(("poison", "kept"), [(0, False), (0xAAAA_AAAA, True)])
def test_pages_that_must_stay_poisoned_are_kept(rig: Rig, poison: int, kept: bool) -> None:
    rig.balloon.write_config(12, struct.pack("<I", poison))
    rig.show(REPORTING, (POOL, PAGE))
    assert any(rig.memory.read(POOL, PAGE)) is kept
    assert rig.config()[3] == poison


def test_poison_without_its_feature_means_nothing() -> None:
    rig = Rig(BalloonSpec(page_reporting=True), without=POISON)
    rig.fill_pool()
    rig.start()
    rig.balloon.write_config(12, b"\xaa" * 4)
    rig.show(REPORTING, (POOL, PAGE))
    assert not any(rig.memory.read(POOL, PAGE))
    rig.close()


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
    rig = Rig(BalloonSpec(page_reporting=True), without=without)
    rig.fill_pool()
    rig.start(*queues)
    rig.show(reporting, (POOL, PAGE))
    assert not any(rig.memory.read(POOL, PAGE))
    rig.close()


def test_queue_without_its_feature_does_nothing() -> None:
    rig = Rig(BalloonSpec(page_reporting=True), without=REPORTS)
    rig.fill_pool()
    rig.start()
    rig.show(REPORTING, (POOL, PAGE))
    assert "a queue without its feature" in rig.lines[-1]
    assert rig.memory.read(POOL, 1) == b"\xab"
    rig.close()


# Statistics.


def test_statistics_wait_for_the_question_and_are_refreshed(rig: Rig) -> None:
    rig.send(STATS, stat(4, 1000) + stat(5, 2000))
    assert rig.used(STATS) == []
    before = rig.ask("refresh")
    assert (before["updates"], before["stats"]) == (1, [(4, 1000), (5, 2000)])
    assert rig.used(STATS) == [0]
    assert rig.interrupted(STATS)
    assert rig.ask("refresh")["updates"] == 1  # it is the driver's turn
    rig.send(STATS, stat(4, 999))
    assert rig.ask("state")["updates"] == 2
    assert rig.ask("state")["stats"] == [(4, 999)]


def test_all_tags_are_known_and_others_ignored(rig: Rig) -> None:
    data = b"".join(stat(tag, tag + 100) for tag in (*range(15, -1, -1), 16, 0xFFFF))
    rig.send(STATS, data)
    assert rig.ask("state")["stats"] == [(tag, tag + 100) for tag in range(15, -1, -1)]


@pytest.mark.parametrize(
    ("data", "stats"),
    [
        pytest.param(b"", [], id="empty"),
        pytest.param(b"\4\0", [], id="short"),
        pytest.param(stat(4, 1) + b"\5", [(4, 1)], id="odd"),
        pytest.param(stat(4, 1) + stat(4, 2), [(4, 2)], id="twice"),
        pytest.param(stat(4, 1) * 300 + stat(4, 2), [(4, 1)], id="endless"),
        pytest.param(stat(4, 2**64 - 1), [(4, 2**64 - 1)], id="greatest"),
    ],
)
def test_any_statistics_are_taken(rig: Rig, data: bytes, stats: list[tuple[int, int]]) -> None:
    rig.send(STATS, data)
    assert rig.ask("state")["stats"] == stats
    rig.ask("refresh")
    assert rig.used(STATS) == [0]


def test_only_the_last_of_many_buffers_is_kept(rig: Rig) -> None:
    for value in range(3):
        rig.send(STATS, stat(4, value))
    assert rig.used(STATS) == [0, 0]
    assert rig.ask("state")["stats"] == [(4, 2)]


def test_buffer_of_a_queue_that_was_reset_is_forgotten(rig: Rig) -> None:
    rig.send(STATS, stat(4, 1))
    rig.worker.stop_queue(STATS)
    rig.start_queue(STATS)
    rig.ask("refresh")
    assert rig.used(STATS) == []
    rig.send(STATS, stat(4, 2))
    rig.ask("refresh")
    assert rig.used(STATS) == [0]


def test_successor_takes_the_buffer_over(rig: Rig) -> None:
    rig.send(STATS, stat(4, 5))
    rig.worker.stop_queue(STATS)
    successor = Balloon(BalloonSpec(page_reporting=True))
    other = DriverSide(successor, rig.memory)
    other.queues = rig.queues
    successor.activate(rig.features)
    other.start_queue(STATS, resume=True)
    assert successor.command("state", {})["stats"] == [(4, 5)]
    successor.command("refresh", {})
    assert rig.used(STATS) == [0]
    other.close()


# Free page hints.


def test_a_round_of_hints_is_counted_and_ends_with_done(rig: Rig) -> None:
    rig.ask("state", hint=True)
    cmd_id = rig.config()[2]
    assert cmd_id >= FIRST_CMD_ID
    assert rig.context.config_changes == 1
    rig.send(FREE_PAGE, struct.pack("<I", cmd_id))
    rig.used(FREE_PAGE)
    rig.show(FREE_PAGE, (POOL, 4 * PAGE))
    rig.show(FREE_PAGE, (POOL + 8 * PAGE, 2 * PAGE))
    assert rig.ask("state")["hint_done"] is False
    rig.send(FREE_PAGE, struct.pack("<I", VIRTIO_BALLOON_CMD_ID_STOP))
    assert rig.config()[2] == balloon.VIRTIO_BALLOON_CMD_ID_DONE
    state = rig.ask("state")
    assert (state["hint_done"], state["hinted_bytes"]) == (True, 6 * PAGE)
    assert rig.memory.read(POOL, 1) == b"\xab"


def test_hints_of_another_round_or_of_none_are_not_counted(rig: Rig) -> None:
    rig.show(FREE_PAGE, (POOL, PAGE))
    rig.ask("state", hint=True)
    rig.send(FREE_PAGE, struct.pack("<I", rig.config()[2] + 1))
    rig.used(FREE_PAGE)
    rig.show(FREE_PAGE, (POOL, PAGE))
    assert rig.ask("state")["hinted_bytes"] == 0


def test_cmd_id_that_is_cut_short_comes_back(rig: Rig) -> None:
    rig.send(FREE_PAGE, b"\1\0")
    assert rig.used(FREE_PAGE) == [0]
    assert "4 bytes wanted, 2 are there" in rig.lines[-1]


def test_driver_that_never_stops_gets_its_pages_back_in_time(rig: Rig) -> None:
    rig.ask("state", hint=True)
    rig.send(FREE_PAGE, struct.pack("<I", rig.config()[2]))
    rig.context.advance(balloon.HINT_SECONDS + 1)
    assert rig.config()[2] == balloon.VIRTIO_BALLOON_CMD_ID_DONE
    assert rig.ask("state", hint=True)
    assert rig.config()[2] > FIRST_CMD_ID


def test_time_of_one_round_does_not_end_the_next(rig: Rig) -> None:
    rig.ask("state", hint=True)
    rig.send(FREE_PAGE, struct.pack("<I", rig.config()[2]))
    rig.context.advance(balloon.HINT_SECONDS - 1)
    rig.send(FREE_PAGE, struct.pack("<I", 0))
    rig.ask("state", hint=True)
    rig.context.advance(2)
    assert rig.config()[2] >= FIRST_CMD_ID


def test_hints_of_a_driver_that_knows_none_are_refused() -> None:
    rig = Rig(BalloonSpec(), without=HINT)
    rig.start(0, 1, 2)
    with pytest.raises(CommandError, match="knows no free page hints"):
        rig.ask("state", hint=True)
    rig.close()


# The target, and the rest of the configuration.


@pytest.mark.parametrize(
    ("verb", "pages", "target", "clamped"),
    [
        pytest.param("set", 100, 100, False, id="set"),
        pytest.param("set", 1 << 40, (GUEST_BYTES + MIB) // PAGE, True, id="more-than-memory"),
        pytest.param("adjust", 5, 55, False, id="more"),
        pytest.param("adjust", -50, 0, False, id="none"),
        pytest.param("adjust", -51, 0, True, id="less-than-none"),
        pytest.param("adjust", 0, 50, False, id="same"),
    ],
)
def test_target_is_kept_within_the_memory(
    rig: Rig, verb: str, pages: int, target: int, clamped: bool
) -> None:
    rig.ask("set", pages=50)
    rig.context.config_changes = 0
    answer = rig.ask(verb, pages=pages)
    assert (answer["target_pages"], answer["clamped"]) == (target, clamped)
    assert rig.config()[0] == target
    assert rig.context.config_changes == (target != 50)


@pytest.mark.parametrize(
    ("verb", "arguments", "reason"),
    [
        pytest.param("set", {}, "pages must be a whole number", id="nothing"),
        pytest.param("set", {"pages": True}, "pages must be", id="bool"),
        pytest.param("adjust", {"pages": "1"}, "pages must be", id="text"),
        pytest.param("burst", {}, "unknown command burst", id="verb"),
    ],
)
def test_command_that_makes_no_sense_is_refused(
    rig: Rig, verb: str, arguments: dict[str, object], reason: str
) -> None:
    with pytest.raises(CommandError, match=reason):
        rig.ask(verb, **arguments)


@pytest.mark.parametrize(
    ("offset", "data", "field"),
    [
        pytest.param(4, struct.pack("<I", 77), 1, id="actual"),
        pytest.param(12, struct.pack("<I", 77), 3, id="poison"),
    ],
)
def test_driver_writes_its_two_fields(rig: Rig, offset: int, data: bytes, field: int) -> None:
    rig.balloon.write_config(offset, data)
    assert [at for at, value in enumerate(rig.config()) if value] == [field]


@pytest.mark.parametrize(
    ("offset", "length"), [(0, 4), (8, 4), (4, 2), (6, 2), (4, 8), (5, 4), (16, 4), (0xFFFF, 1)]
)
def test_other_writes_to_the_configuration_change_nothing(
    rig: Rig, offset: int, length: int
) -> None:
    rig.balloon.write_config(offset, b"\xff" * length)
    assert rig.config() == (0, 0, 0, 0)


def test_reset_forgets_the_driver_and_keeps_the_target(rig: Rig) -> None:
    rig.ask("set", pages=9)
    rig.balloon.write_config(4, struct.pack("<I", 9))
    rig.send(STATS, stat(4, 1))
    rig.ask("state", hint=True)
    rig.reset()
    assert rig.config() == (9, 0, 0, 0)
    state = rig.ask("state")
    assert (state["has_driver"], state["stats"], state["hint_done"]) == (False, [], True)


def test_a_flood_is_served_in_turns() -> None:
    rig = Rig(BalloonSpec(page_reporting=True))
    rig.start(size=128)
    queue = rig.queues[REPORTING]
    queue.write_descs({0: Desc(POOL, PAGE, WRITE)})
    for _ in range(128):
        queue.stage(0)
    queue.publish()
    assert rig.worker.on_kick(REPORTING) is True
    assert len(queue.take_used()) == balloon.MAX_CHAINS_PER_TURN
    rig.kick(REPORTING)
    assert len(queue.take_used()) == 128 - balloon.MAX_CHAINS_PER_TURN
    rig.close()


def test_paused_balloon_gives_no_buffer_back(rig: Rig) -> None:
    rig.send(STATS, stat(4, 1))
    rig.worker.pause()
    rig.ask("refresh")
    assert rig.used(STATS) == []
    rig.worker.resume()
    rig.ask("refresh")
    assert rig.used(STATS) == [0]


def test_paused_balloon_takes_nothing(rig: Rig) -> None:
    rig.worker.pause()
    rig.queues[REPORTING].offer(0, {0: Desc(POOL, PAGE, WRITE)})
    rig.kick(REPORTING)
    assert rig.memory.read(POOL, 1) == b"\xab"
    rig.worker.resume()
    rig.worker.on_kick(REPORTING)
    assert not any(rig.memory.read(POOL, PAGE))
