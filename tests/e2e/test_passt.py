# SPDX-License-Identifier: BSD-3-Clause
"""passt itself, which gets out of step when its socket is full: the network outlives that."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from tests.e2e.passt_flood import QUESTIONS, ROUNDS

if TYPE_CHECKING:
    from tests.kvmhost.fixture import KvmHost


def test_flood_that_nobody_takes_leaves_the_network_up(kvmhost: KvmHost) -> None:
    command = ["python3", "-m", "tests.e2e.passt_flood"]
    result = kvmhost.run(command, cwd="/project", timeout=240.0)
    assert result.status == 0, result.stdout + result.stderr
    found = json.loads(result.stdout)
    assert found["strange"] == 0
    assert found["answered"] == ROUNDS
    assert ROUNDS < found["frames"] < ROUNDS * QUESTIONS  # some had no room
    assert "passt left out frames" in result.stderr
