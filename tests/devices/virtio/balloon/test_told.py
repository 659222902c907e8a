# SPDX-License-Identifier: BSD-3-Clause
"""What the driver tells a balloon of its memory: statistics, and hints at free pages."""

from __future__ import annotations

import struct

import pytest

from devices.virtio.balloon.device import FREE_PAGE_QUEUE as FREE_PAGE
from devices.virtio.balloon.device import (
    HINT_SECONDS,
    VIRTIO_BALLOON_CMD_ID_DONE,
    Balloon,
    BalloonSpec,
)
from devices.virtio.balloon.device import STATS_QUEUE as STATS
from devices.virtio.balloon.state import FIRST_CMD_ID, VIRTIO_BALLOON_CMD_ID_STOP
from devices.virtio.commands import TellState
from devices.virtio.device import CommandError
from tests.support.balloon_rig import HINT, PAGE, POOL, BalloonRig, stat
from tests.support.commands import ask_balloon
from tests.support.device_context import DriverSide

# Statistics.


def test_statistics_wait_for_the_question_and_are_refreshed(balloon: BalloonRig) -> None:
    balloon.send(STATS, stat(4, 1000) + stat(5, 2000))
    assert balloon.used(STATS) == []
    before = balloon.ask(TellState(refresh=True))
    assert (before.updates, before.stats) == (1, ((4, 1000), (5, 2000)))
    assert balloon.used(STATS) == [0]
    assert balloon.interrupted(STATS)
    assert balloon.ask(TellState(refresh=True)).updates == 1  # it is the driver's turn
    balloon.send(STATS, stat(4, 999))
    assert balloon.ask(TellState()).updates == 2
    assert balloon.ask(TellState()).stats == ((4, 999),)


def test_all_tags_are_known_and_others_ignored(balloon: BalloonRig) -> None:
    data = b"".join(stat(tag, tag + 100) for tag in (*range(15, -1, -1), 16, 0xFFFF))
    balloon.send(STATS, data)
    assert balloon.ask(TellState()).stats == tuple((tag, tag + 100) for tag in range(15, -1, -1))


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
def test_any_statistics_are_taken(
    balloon: BalloonRig, data: bytes, stats: list[tuple[int, int]]
) -> None:
    balloon.send(STATS, data)
    assert balloon.ask(TellState()).stats == tuple(stats)
    balloon.ask(TellState(refresh=True))
    assert balloon.used(STATS) == [0]


def test_only_the_last_of_many_buffers_is_kept(balloon: BalloonRig) -> None:
    for value in range(3):
        balloon.send(STATS, stat(4, value))
    assert balloon.used(STATS) == [0, 0]
    assert balloon.ask(TellState()).stats == ((4, 2),)


def test_buffer_of_a_queue_that_was_reset_is_forgotten(balloon: BalloonRig) -> None:
    balloon.send(STATS, stat(4, 1))
    balloon.worker.stop_queue(STATS)
    balloon.start_queue(STATS)
    balloon.ask(TellState(refresh=True))
    assert balloon.used(STATS) == []
    balloon.send(STATS, stat(4, 2))
    balloon.ask(TellState(refresh=True))
    assert balloon.used(STATS) == [0]


def test_successor_takes_the_buffer_over(balloon: BalloonRig) -> None:
    balloon.send(STATS, stat(4, 5))
    balloon.worker.stop_queue(STATS)
    successor = Balloon(BalloonSpec(page_reporting=True))
    other = DriverSide(successor, balloon.memory)
    other.queues = balloon.queues
    successor.activate(balloon.features)
    other.start_queue(STATS, resume=True)
    assert ask_balloon(successor, TellState()).stats == ((4, 5),)
    successor.command(TellState(refresh=True))
    assert balloon.used(STATS) == [0]
    other.close()


# Free page hints.


def test_a_round_of_hints_is_counted_and_ends_with_done(balloon: BalloonRig) -> None:
    balloon.ask(TellState(hint=True))
    cmd_id = balloon.config()[2]
    assert cmd_id >= FIRST_CMD_ID
    assert balloon.context.config_changes == 1
    balloon.send(FREE_PAGE, struct.pack("<I", cmd_id))
    balloon.used(FREE_PAGE)
    balloon.show(FREE_PAGE, (POOL, 4 * PAGE))
    balloon.show(FREE_PAGE, (POOL + 8 * PAGE, 2 * PAGE))
    assert balloon.ask(TellState()).hint_done is False
    balloon.send(FREE_PAGE, struct.pack("<I", VIRTIO_BALLOON_CMD_ID_STOP))
    assert balloon.config()[2] == VIRTIO_BALLOON_CMD_ID_DONE
    state = balloon.ask(TellState())
    assert (state.hint_done, state.hinted_bytes) == (True, 6 * PAGE)
    assert balloon.memory.read(POOL, 1) == b"\xab"


def test_hints_of_another_round_or_of_none_are_not_counted(balloon: BalloonRig) -> None:
    balloon.show(FREE_PAGE, (POOL, PAGE))
    balloon.ask(TellState(hint=True))
    balloon.send(FREE_PAGE, struct.pack("<I", balloon.config()[2] + 1))
    balloon.used(FREE_PAGE)
    balloon.show(FREE_PAGE, (POOL, PAGE))
    assert balloon.ask(TellState()).hinted_bytes == 0


def test_cmd_id_that_is_cut_short_comes_back(balloon: BalloonRig, lines: list[str]) -> None:
    balloon.send(FREE_PAGE, b"\1\0")
    assert balloon.used(FREE_PAGE) == [0]
    assert "4 bytes wanted, 2 are there" in lines[-1]


def test_driver_that_never_stops_gets_its_pages_back_in_time(balloon: BalloonRig) -> None:
    balloon.ask(TellState(hint=True))
    balloon.send(FREE_PAGE, struct.pack("<I", balloon.config()[2]))
    balloon.context.advance(HINT_SECONDS + 1)
    assert balloon.config()[2] == VIRTIO_BALLOON_CMD_ID_DONE
    balloon.ask(TellState(hint=True))
    assert balloon.config()[2] > FIRST_CMD_ID


def test_time_of_one_round_does_not_end_the_next(balloon: BalloonRig) -> None:
    balloon.ask(TellState(hint=True))
    balloon.send(FREE_PAGE, struct.pack("<I", balloon.config()[2]))
    balloon.context.advance(HINT_SECONDS - 1)
    balloon.send(FREE_PAGE, struct.pack("<I", 0))
    balloon.ask(TellState(hint=True))
    balloon.context.advance(2)
    assert balloon.config()[2] >= FIRST_CMD_ID


def test_hints_of_a_driver_that_knows_none_are_refused() -> None:
    balloon = BalloonRig(BalloonSpec(), without=HINT)
    balloon.start(0, 1, 2)
    with pytest.raises(CommandError, match="knows no free page hints"):
        balloon.ask(TellState(hint=True))
    balloon.close()


def test_paused_balloon_gives_no_buffer_back(balloon: BalloonRig) -> None:
    balloon.send(STATS, stat(4, 1))
    balloon.worker.pause()
    balloon.ask(TellState(refresh=True))
    assert balloon.used(STATS) == []
    balloon.worker.resume()
    balloon.ask(TellState(refresh=True))
    assert balloon.used(STATS) == [0]
