# SPDX-License-Identifier: BSD-3-Clause
"""The short form of ``python -m tests.endurance``: several guests at once, and one under fire."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tests.endurance.load import run_load
from tests.endurance.many import run_many

if TYPE_CHECKING:
    from tests.kvmhost.fixture import KvmHost


def test_guests_side_by_side_each_do_their_work(kvmhost: KvmHost) -> None:
    result = run_many(kvmhost, 5)
    assert result.wrong == []
    assert result.processes_at_once == 5 * 7  # vmm, keeper, warden, three disks and rng


def test_guest_sees_no_error_while_its_devices_are_killed(kvmhost: KvmHost) -> None:
    result = run_load(kvmhost, "8", seed=2)
    assert result.wrong == [], result.facts
    assert (result.killed, result.stopped) == (7, 1)
    assert sum(result.restarts.values()) == result.killed + result.stopped
    assert int(result.facts["fio_rounds"]) > 0
    assert int(result.facts["tcp_rounds"]) > 0
    assert float(result.facts["iperf_mib"]) > 0
    assert int(result.facts["vsock_answers"]) > 0
