# SPDX-License-Identifier: BSD-3-Clause
"""``crosvm info`` and ``crosvm top`` of a VM that runs."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from tests.baremetal.vmm import PATIENCE_SECONDS, ROOT, Vmm, crosvm
from tests.guests.baremetal.build import build_guest

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = [pytest.mark.kvm, pytest.mark.slow]


def test_info_and_top_tell_what_the_vm_does_until_it_has_ended(tmp_path: Path) -> None:
    control = tmp_path / "vm.sock"
    with Vmm(["-m", "16", "-s", control, build_guest("echo", tmp_path)]) as vmm:
        vmm.wait_for(b"echo")
        info = json.loads(crosvm("info", "--json", control).stdout)
        names = {process["name"] for process in info["processes"]}
        assert {"crosvm-warden", "crosvm-control", "rng"} <= names
        assert info["pid"] == vmm.processes().vmm
        watching = [sys.executable, "-m", "crosvm_py", "top", "--json", "-d", "0.1", str(control)]
        with subprocess.Popen(watching, stdout=subprocess.PIPE, cwd=ROOT) as top:
            assert top.stdout is not None
            (shown,) = json.loads(top.stdout.readline())
            # The guest asks its serial port for keys all the time.
            assert shown["vcpus"][0]["exits_per_second"] > 0
            assert shown["processes"][0]["cpu_share"] is not None
            crosvm("stop", control)
            assert top.wait(PATIENCE_SECONDS) == 0
