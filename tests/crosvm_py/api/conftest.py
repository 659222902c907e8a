# SPDX-License-Identifier: BSD-3-Clause
"""The API in front of a vmm that a test plays; no descriptor may be left."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from crosvm_py.vm_config.devices import BalloonConfig, DiskConfig
from crosvm_py.vm_config.schema import VmConfig
from tests.crosvm_py.api.rig import Rig

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

CONFIG = VmConfig(
    disks=(DiskConfig(path="/a"), DiskConfig(path="/b", id="data")), balloon=BalloonConfig(size=0)
)


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[Rig]:
    made = Rig(tmp_path, CONFIG)
    yield made
    made.close()
