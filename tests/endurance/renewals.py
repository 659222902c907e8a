# SPDX-License-Identifier: BSD-3-Clause
"""Restart a device on purpose, over and over, and see whether anything grows that stays."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Final, NamedTuple

from crosvm_py.control.socket_client import ask
from crosvm_py.requests.devices import RestartDevice
from tests.baremetal.vmm import Vmm
from tests.endurance.progress import report
from tests.guests.baremetal.build import build_guest
from tests.support.layout import anonymous_kib

if TYPE_CHECKING:
    from pathlib import Path

# What is filled once is not growth: caches, the first arenas.
_WARM_UP: Final = 10
MAX_GROWTH_KIB: Final = 256


class RenewalsResult(NamedTuple):
    """Memory of no file before and after, of the processes that stay: in KiB, by name."""

    restarts: int
    seconds: float
    before_kib: dict[str, int]
    after_kib: dict[str, int]
    wrong: list[str]


def run_renewals(count: int, folder: Path) -> RenewalsResult:
    """Have the rng device restarted ``count`` times, each time with its code read anew."""
    guest = build_guest("echo", folder)
    path = folder / "vm.sock"
    with Vmm(["-m", "16", "-s", path, guest]) as vm:
        vm.wait_for(b"echo\n")
        found = vm.processes()
        staying = {"vmm": found.vmm, "warden": found.warden, "forge": found.forge}
        for _ in range(_WARM_UP):
            ask(str(path), RestartDevice("rng"))
        before = {name: anonymous_kib(pid) for name, pid in staying.items()}
        began = time.monotonic()
        for number in range(count):
            ask(str(path), RestartDevice("rng"))
            if number % 100 == 99:
                report(f"{number + 1} of {count}")
        seconds = time.monotonic() - began
        after = {name: anonymous_kib(pid) for name, pid in staying.items()}
        vm.type(b"q")
        vm.wait()
    wrong = [name for name in staying if after[name] - before[name] > MAX_GROWTH_KIB]
    return RenewalsResult(count, round(seconds, 1), before, after, wrong)
