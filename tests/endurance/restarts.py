# SPDX-License-Identifier: BSD-3-Clause
"""Kill the devices of a bare-metal guest's VM, and see how soon each serves again."""

from __future__ import annotations

import os
import re
import signal
import socket
import statistics
import time
from typing import TYPE_CHECKING, Final, NamedTuple

from crosvm_py.requests import catalogue, protocol
from crosvm_py.requests.devices import DeviceList, ListDevices
from crosvm_py.vmm.restart import HEALTHY_SECONDS
from sys_util import wire
from tests.baremetal.vmm import Vmm
from tests.endurance.progress import report
from tests.guests.baremetal.build import build_guest

if TYPE_CHECKING:
    from pathlib import Path

    from crosvm_py.requests.devices import DeviceInfo

_GOES_ON: Final = re.compile(r"(\S+): process \d+ goes on after (\d+) ms")


class RestartsResult(NamedTuple):
    """From the moment in which the end was noticed to that in which the next process served."""

    restarts: int
    median_ms: dict[str, float]
    max_ms: dict[str, int]
    wrong: list[str]


def run_restarts(count: int, folder: Path) -> RestartsResult:
    """Kill every device ``count`` times, each after it has lived a while, and with a spare."""
    guest = build_guest("echo", folder)
    disk = folder / "disk.img"
    disk.write_bytes(bytes(8192))
    path = folder / "vm.sock"
    words: list[str | Path] = ["-m", "16", "--balloon", "0", "--rwdisk", disk, "-s", path]
    words += ["--vsock", f"cid=3,socket={folder}/v.sock", "--device-restart=always", guest]
    with Vmm(words) as vm:
        vm.wait_for(b"echo\n")
        for number in range(count):
            for device in devices(path):
                time.sleep(HEALTHY_SECONDS)  # the spare is ready before long
                os.kill(device.pid, signal.SIGKILL)
                wait_for_successor(path, device)
            report(f"{number + 1} of {count}")
        vm.type(b"q")
        vm.wait()
        found: dict[str, list[int]] = {}
        for name, milliseconds in _GOES_ON.findall(vm.log()):
            found.setdefault(name, []).append(int(milliseconds))
    wrong = [f"{name}: {len(times)}" for name, times in found.items() if len(times) != count]
    return RestartsResult(
        sum(map(len, found.values())),
        {name: statistics.median(times) for name, times in found.items()},
        {name: max(times) for name, times in found.items()},
        wrong,
    )


def devices(path: Path) -> tuple[DeviceInfo, ...]:
    """Return what ``crosvm devices`` says."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as sock:
        sock.connect(str(path))
        sock.send(wire.encode(ListDevices()))
        answer = catalogue.RESPONSES.decode(sock.recv(protocol.MAX_RESPONSE_BYTES))
    assert isinstance(answer, DeviceList)
    return answer.devices


def wait_for_successor(path: Path, device: DeviceInfo) -> None:
    """Wait until a new process has the device."""
    while True:
        now = devices(path)[device.index]
        if now.pid != device.pid and now.state == device.state:
            return
        time.sleep(0.01)
