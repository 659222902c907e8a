# SPDX-License-Identifier: BSD-3-Clause
"""The short form of ``python -m tests.endurance starts``: nothing is left of VMs that ended."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.endurance.starts import ENDS, run_starts

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = [pytest.mark.kvm, pytest.mark.slow]


def test_nothing_is_left_of_vms_that_ended_in_every_way(tmp_path: Path) -> None:
    result = run_starts(2 * len(ENDS), tmp_path, progress=False)
    assert result.left == []
