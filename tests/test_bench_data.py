# SPDX-License-Identifier: BSD-3-Clause
"""The benchmark of the data plane: how its guest's report is read, where threads are put."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from tests.bench import data, placement
from tests.bench.data_disks import Disks
from tests.bench.results import OURS
from tests.bench.watch import WatchError

if TYPE_CHECKING:
    from pathlib import Path

REPORT = """\
ready
clock 0000000000000000
block r cached 00001000 00000020 00000064 00000000000003e8 00000000
block w direct 00010000 00000001 0000000a 00000000000007d0 00000000
clock 00000000003d0900
"""


def read(text: str) -> data.Reader:
    """Read a report with one second between the two clocks."""
    reader = data.Reader()
    for number, line in enumerate(text.splitlines()):
        reader.line(line, float(number > 2))
    return reader


def test_report_is_read_by_the_guests_own_clock() -> None:
    reader = read(REPORT)
    report = reader.report()
    assert reader.is_ready
    assert report.hz == 4_000_000.0
    seen = {metric.name: value for metric, value in report.microseconds()}
    assert seen == {"4 KiB read, cached, depth 32": 2.5, "64 KiB write, direct, depth 1": 50.0}


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        pytest.param("ready\nclock 1\n", "not come to its end", id="no-end"),
        pytest.param("no device\n", "the guest has no device", id="nothing-to-measure"),
        pytest.param(f"block r cached {'1 ' * 5}\n", "1 requests failed", id="failed-requests"),
    ],
)
def test_report_that_says_nothing_is_refused(text: str, reason: str) -> None:
    with pytest.raises(WatchError, match=reason):
        read(text).report()


def test_process_without_a_vcpu_is_not_placed() -> None:
    command = [sys.executable, "-c", "input()"]
    with subprocess.Popen(command, stdin=subprocess.PIPE) as process:
        with pytest.raises(LookupError, match="no vCPU"):
            placement.place(process.pid, realtime=False)
        wanted = {max(os.sched_getaffinity(0))}
        assert os.sched_getaffinity(process.pid) == wanted
        process.kill()


@pytest.mark.kvm
@pytest.mark.slow
def test_every_request_of_the_guest_succeeds(tmp_path: Path) -> None:
    with Disks(tmp_path) as disks:
        report = data.run_guest(disks.commands[OURS], realtime=False)
    assert len(report.measurements) == 10
