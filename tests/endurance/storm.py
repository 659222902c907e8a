# SPDX-License-Identifier: BSD-3-Clause
"""A guest that never rests, whose device processes are killed as fast as they come.

Two threads play its processors: through real transports they write configuration, kick, reset and
set up the devices, in any order. Meanwhile the vmm's loop ends the processes, makes new ones, and
carries out what clients ask for. No exception may come of it, no process may be told that it broke
a rule that it kept, and in the end every device serves.
"""

from __future__ import annotations

import os
import random
import signal
import sys
import threading
import time
from typing import TYPE_CHECKING, Final, NamedTuple

from crosvm_py.care import ALWAYS, Care
from crosvm_py.config import SerialSpec
from crosvm_py.console.serial_ports import open_serial_ports
from crosvm_py.kinds.console import open_console
from crosvm_py.kinds.order import DeviceOrder, pack_spec
from crosvm_py.operations.balloon import adjust_balloon, query_balloon
from crosvm_py.operations.devices import limit_device, list_devices, restart_device
from crosvm_py.requests.balloon import BalloonAdjust, BalloonQuery
from crosvm_py.requests.devices import LimitDevice, ListDevices, RestartDevice
from crosvm_py.vmm import restart
from devices.virtio.balloon.device import BalloonSpec
from sys_util.errors import ConfigError
from tests.crosvm_py.device_rig import DeviceRig
from tests.crosvm_py.operations.running_vm import supervised
from tests.devices.virtio.transport.pci_driver import (
    ACKNOWLEDGE,
    AVAIL,
    DESC,
    DRIVER,
    DRIVER_OK,
    FEATURES_OK,
    MASTER,
    MEMORY,
    QUEUE_ENABLE,
    QUEUE_RESET,
    QUEUE_SELECT,
    STATUS,
    USED,
    Machine,
)
from tests.endurance.progress import report

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from crosvm_py.vmm.device_proxy import DeviceProcess

PROCESSORS: Final = 2
REPORT_EVERY: Final = 500
# How often, for each process that is killed, something else happens.
PURPOSE_EVERY: Final = 25
ASK_EVERY: Final = 3


class StormResult(NamedTuple):
    """What happened, and what should not have."""

    kills: int
    restarts_on_purpose: int
    answers: int
    accesses: int
    seconds: float
    wrong: list[str]


class _Guest:
    """The drivers of one device, on all processors."""

    def __init__(self, device: DeviceProcess, rig: DeviceRig) -> None:
        self.machine = machine = Machine(device, rig.lock)
        self.queues = len(device.queue_sizes)
        self.config_bytes = len(device.config)
        machine.command(MEMORY | MASTER)
        machine.enable_msix(*range(self.queues + 1))
        self.common, self.config = machine.region(1), machine.region(4)
        device.events = machine.transport

        def pass_interrupt(_events: int) -> None:
            with rig.lock:
                machine.transport.on_intx_event()

        rig.loop.add(machine.transport.intx_fd, pass_interrupt)

    def act(self, chance: random.Random) -> int:
        """Do something that a driver may do, or may not; return the number of accesses."""
        action = chance.choice(
            (self._write_config, self._write_config, self._kick, self._reset, self._set_up)
        )
        return action(chance)

    def _write_config(self, chance: random.Random) -> int:
        for _ in range(100):
            offset = chance.randrange(0, max(4, self.config_bytes), 4)
            self.machine.mmio.write(self.config + offset, 4, chance.getrandbits(32))
        return 100

    def _kick(self, chance: random.Random) -> int:
        for _ in range(20):
            self.machine.notify(chance.randrange(self.queues))
        return 20

    def _reset(self, chance: random.Random) -> int:
        if chance.random() < 0.5:
            self._write(STATUS, 1, 0)
            return 1
        self._write(QUEUE_SELECT, 2, chance.randrange(self.queues))
        self._write(QUEUE_RESET, 2, 1)
        return 2

    def _set_up(self, chance: random.Random) -> int:
        machine = self.machine
        self._write(STATUS, 1, 0)
        for status in (ACKNOWLEDGE, DRIVER):
            machine.add_status(status)
        machine.acknowledge_features(machine.offered())
        machine.add_status(FEATURES_OK)
        for index in range(self.queues):
            self._write(QUEUE_SELECT, 2, index)
            for register, address in ((DESC, 0x10000), (AVAIL, 0x14000), (USED, 0x18000)):
                self._write(register, 4, address + 0x10000 * index)
            self._write(QUEUE_ENABLE, 2, 1)
        machine.add_status(DRIVER_OK)
        return 24 + 5 * self.queues

    def _write(self, offset: int, size: int, value: int) -> None:
        self.machine.mmio.write(self.common + offset, size, value)


class _Storm:
    """The machine, and everybody who works on it."""

    def __init__(self, rig: DeviceRig, seed: int, folder: Path) -> None:
        self.rig = rig
        self.answers = self.accesses = 0
        self.errors: list[str] = []
        self._chance = random.Random(seed)
        self._seed = seed
        self._resting = threading.Event()
        self._console = open_serial_ports(
            [SerialSpec("file", "virtio-console", path=f"{folder}/console", console=True)]
        ).virtio
        assert self._console is not None
        disk = folder / "disk"
        disk.write_bytes(bytes(1 << 16))
        balloon = DeviceOrder("balloon", "balloon", pack_spec(BalloonSpec()), (), 0)
        self.devices = (
            rig.start(balloon),
            rig.start(open_console(self._console)),
            rig.rng(),
            rig.block(disk),
        )
        self.guests = [_Guest(device, rig) for device in self.devices]
        self._threads = [
            threading.Thread(target=self._process, args=(number,)) for number in range(PROCESSORS)
        ]
        for thread in self._threads:
            thread.start()

    def _process(self, number: int) -> None:
        chance = random.Random(self._seed * PROCESSORS + number)
        try:
            while not self._resting.is_set():
                self.accesses += chance.choice(self.guests).act(chance)
        except Exception as error:  # noqa: BLE001 - whatever it is, it is what we look for
            self.errors.append(f"processor {number}: {error!r}")

    def ask(self) -> None:
        """Be a client who wants something."""
        chance, vm = self._chance, supervised(self.rig.supervisor)
        wishes: tuple[Callable[[], object], ...] = (
            lambda: list_devices(vm, ListDevices()),
            lambda: adjust_balloon(vm, BalloonAdjust(chance.randrange(-9, 9))),
            lambda: query_balloon(vm, BalloonQuery(refresh=True, hint=False)),
            lambda: limit_device(vm, LimitDevice("rng", (chance.randrange(9),) * 6)),
        )
        chance.choice(wishes)()
        self.answers += 1

    def kill(self) -> bool:
        """Kill a process that serves, if there is one."""
        ready = [device for device in self.devices if device.status.ready and device.is_open]
        if not ready:
            return False
        try:
            os.kill(self._chance.choice(ready).pid, signal.SIGKILL)
        except ProcessLookupError:  # it was killed before, which nobody has noticed yet
            return False
        return True

    def restart(self) -> bool:
        """Have a process ended in order."""
        name = self._chance.choice(self.devices).name
        try:
            restart_device(supervised(self.rig.supervisor), RestartDevice(name))
        except ConfigError:
            return False
        return True

    def calm(self) -> None:
        """Stop the processors."""
        self._resting.set()
        for thread in self._threads:
            thread.join()

    def rest(self) -> None:
        """See that every device serves, and take everything apart."""
        rig = self.rig
        for guest in self.guests:
            guest.machine.write(STATUS, 1, 0)
        rig.until(lambda: all(device.status.ready for device in self.devices) or bool(rig.deaths))
        rig.until(lambda: all(guest.machine.status == 0 for guest in self.guests))
        for device in self.devices:
            asked: list[bool] = []
            device.pause(lambda asked=asked: asked.append(True))  # type: ignore[misc]  # a default
            rig.until(lambda asked=asked: bool(asked))  # type: ignore[misc]  # a default
        for guest in self.guests:
            rig.loop.remove(guest.machine.transport.intx_fd)
            guest.machine.close()


def run_storm(kills: int, seed: int, folder: Path, *, progress: bool = True) -> StormResult:
    """Kill so many processes while the guest does not rest."""
    began = time.monotonic()
    healthy, restart.HEALTHY_SECONDS = restart.HEALTHY_SECONDS, 0.0  # type: ignore[misc]  # here
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)  # so that threads meet everywhere, and not every five milliseconds
    try:
        with DeviceRig(sandbox=os.geteuid() == 0, care=Care(ALWAYS)) as rig:
            return _endure(_Storm(rig, seed, folder), kills, began, progress=progress)
    finally:
        sys.setswitchinterval(interval)
        restart.HEALTHY_SECONDS = healthy  # type: ignore[misc]  # as before


def _endure(storm: _Storm, kills: int, began: float, *, progress: bool) -> StormResult:
    rig, done, on_purpose, turns = storm.rig, 0, 0, 0
    try:
        while done < kills and not (storm.errors or rig.deaths):
            rig.loop.run_once(0.001)
            turns += 1
            if turns % ASK_EVERY == 0:
                storm.ask()
            if done and done % PURPOSE_EVERY == 0:
                on_purpose += storm.restart()
            if storm.kill():
                done += 1
                if progress and done % REPORT_EVERY == 0:
                    report(f"{done} of {kills}")
    finally:
        storm.calm()
    storm.rest()
    wrong = [*storm.errors, *rig.deaths]
    wrong += [line for line in rig.lines if "ended by the vmm" in line or "could not" in line]
    return StormResult(
        done, on_purpose, storm.answers, storm.accesses, round(time.monotonic() - began, 1), wrong
    )
