# SPDX-License-Identifier: BSD-3-Clause
"""Attack the virtio-pci transport: any register, any width, any time, with a live device behind it.

Configuration space by ports and ECAM, the BAR with its six regions, the MSI-X table and the pending
bits, in sequences that no driver makes: features after the fact, queues moved under the device,
resets in its midst. Afterwards a careful driver must find a device that works.
"""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING

from devices.virtio.queue.worker import QueueWorker
from devices.virtio.rng.device import Rng, RngSpec
from sys_util import log
from sys_util.errors import GuestError
from sys_util.guest_memory import GuestMemory
from tests.devices.fakes import WINDOW_BASE, WINDOW_END
from tests.devices.virtio.transport.pci_driver import (
    AVAIL,
    DESC,
    ECAM_BASE,
    MASTER,
    MEMORY,
    NEEDS_RESET,
    NO_VECTOR,
    QUEUE_ENABLE,
    QUEUE_SELECT,
    QUEUE_SIZE,
    QUEUE_VECTOR,
    SLOT_BASE,
    STATUS,
    USED,
    VERSION_1,
    Machine,
)
from tests.fuzz.source import number, one_in, pick
from tests.support.driver_queue import DriverQueue

if TYPE_CHECKING:
    from collections.abc import Sequence

    from devices.virtio.backend import QueueActivation
    from tests.fuzz.source import Source

WIDTHS = (1, 2, 4, 8)
ODD_WIDTHS = (1, 2, 3, 4, 5, 6, 7, 8)
MAX_STEPS = 40
# Common configuration, its end, ISR, device configuration, notify, MSI-X table and pending bits.
PLACES = (0, *range(0, 0x40, 2), 0x14, 0x14, 0x16, 0x1C, 0x40, 0x1000, 0x2000, 0x3000, 0x3004)
PLACES += (0x3FFF, 0x4000, 0x4008, 0x400C, 0x4010, 0x4FFC, 0x5000, 0x6000, 0x7FFC, 0x7FFF)
CONFIG_PLACES = (*range(0, 0x40, 4), *range(0x40, 0xB0, 2), 0xFC, 0xFF, 0x100, 0xFFC, 0xFFF)
STATUSES = (0, 0, 1, 2, 3, 4, 7, 8, 11, 15, 15, 0x40, 0x4F, 0x80, 0xFF)
COMMANDS = (0, 2, 4, 6, 6, 6, 0x406, 0xFFFF)
ADDRESSES = (0x1000, 0x2000, 0x3000, 0x3F000, 0x40000, 0xD000_0000, 1 << 32, 1 << 63, 0x1008, 1)
GOOD_BASE = 0x8000


class LocalBackend:
    """A device in this process: calls take effect at once, answers come when they are asked for."""

    def __init__(self, memory: GuestMemory) -> None:
        self.device = Rng(RngSpec())
        self.worker = QueueWorker(self.device, memory)
        self.name = "rng"
        self.device_type = self.device.device_type
        self.early_writes = self.device.early_writes
        self.features = self.worker.offered_features
        self.queue_sizes = self.device.queue_sizes
        self.config = self.device.config()
        self.answers: list[tuple[str, int]] = []
        self._negotiated = 0
        self.started: dict[int, QueueActivation] = {}

    def activate(self, features: int, queues: Sequence[QueueActivation]) -> None:
        assert not self.started, "activated twice"
        self._negotiated = features
        self.device.activate(features)
        for queue in queues:
            self.enable_queue(queue)

    def enable_queue(self, queue: QueueActivation) -> None:
        self.started[queue.index] = queue
        try:
            self.worker.start_queue(queue, self._negotiated)
            self.serve(queue.index)
        except GuestError:
            self.answers.append(("failed", queue.index))

    def serve(self, index: int) -> None:
        """Take a turn, as the kick eventfd asks for."""
        try:
            self.worker.on_kick(index)
        except GuestError:
            self.answers.append(("failed", index))

    def end(self) -> None:
        """End without a word."""
        for index in tuple(self.started):
            self.worker.stop_queue(index)
        self.started.clear()
        self.answers.clear()

    def reset(self) -> None:
        self.end()
        self.device.reset()
        self.answers.append(("reset", 0))

    def reset_queue(self, index: int) -> None:
        assert index in self.started, "a queue that does not run was reset"
        del self.started[index]
        self.worker.stop_queue(index)
        self.answers.append(("queue reset", index))

    def write_config(self, offset: int, data: bytes) -> None:
        assert offset + len(data) <= len(self.config)


class RegisterFuzzer:
    """One machine with one device, and drivers without sense."""

    def __init__(self) -> None:
        self.mutations = 0
        log.set_sink(lambda _level, _module, _text: None)
        self._memory = GuestMemory.create([(0, 0x40000)])
        self._backend = LocalBackend(self._memory)
        self._machine = Machine(self._backend)
        self._status = 0
        self._lost = False  # there is no device process

    def episode(self, source: Source) -> None:
        """Do some steps, and then drive the device as it should be."""
        self._memory.write(0x1000, source.data(64))
        for _ in range(1 + source.below(MAX_STEPS)):
            self.mutations += 1
            self._step(source)
            self._check()
        self._recover(source)

    def _step(self, source: Source) -> None:
        kind = source.below(13)
        steps = (self._access_config, self._access_ecam, self._access_ports, self._command)
        if kind < 4:
            self._access_bar(source)
        elif kind < 8:
            steps[kind - 4](source)
        elif kind == 8:
            self._machine.write(STATUS, 1, pick(source, STATUSES))
        elif kind == 9:
            self._configure(source)
        elif kind == 10:
            self._answer()
        elif kind == 11:
            self._kick(source)
        else:
            self._end_process(source)

    def _access_config(self, source: Source) -> None:
        offset = pick(source, CONFIG_PLACES) if one_in(source, 2) else source.below(4096)
        self._access(source, SLOT_BASE + offset)

    def _access_ecam(self, source: Source) -> None:
        self._access(source, ECAM_BASE + source.bits(26))

    def _access_ports(self, source: Source) -> None:
        width = pick(source, WIDTHS)
        self._machine.pio.write(0xCF8, 4, number(source, 32) & 0x8000_FFFF)
        self._machine.pio.write(0xCFC + source.below(4), width, number(source, 8 * width))

    def _command(self, source: Source) -> None:
        self._machine.command(pick(source, COMMANDS))

    def _access_bar(self, source: Source) -> None:
        base = self._machine.config_read(0x10, 4) & ~0xF
        offset = pick(source, PLACES) if one_in(source, 2) else source.below(0x8010)
        self._access(source, base + offset)

    def _access(self, source: Source, address: int) -> None:
        """Read and write with a width that KVM may hand out: it splits at the ends of pages."""
        width = pick(source, ODD_WIDTHS if one_in(source, 4) else WIDTHS)
        value = self._machine.mmio.read(address, width)
        assert 0 <= value < 1 << 8 * width
        if not one_in(source, 3):
            self._machine.mmio.write(address, width, number(source, 8 * width))

    def _configure(self, source: Source) -> None:
        """Set a queue up, more or less, whether or not the time is right."""
        machine = self._machine
        machine.write(QUEUE_SELECT, 2, pick(source, (0, 0, 0, 1, 0xFFFF)))
        machine.write(QUEUE_SIZE, 2, pick(source, (0, 1, 3, 8, 256, 512, 0x8000, 0xFFFF)))
        for register in (DESC, AVAIL, USED):
            if not one_in(source, 4):
                machine.write(register, 8, pick(source, ADDRESSES))
        machine.write(QUEUE_VECTOR, 2, pick(source, (0, 1, 2, 3, NO_VECTOR)))
        machine.write(QUEUE_ENABLE, 2, source.below(3))
        machine.acknowledge_features(VERSION_1 if one_in(source, 2) else number(source, 64))

    def _kick(self, source: Source) -> None:
        self._machine.notify(pick(source, (0, 0, 1, 900)))
        for index in tuple(self._backend.started):
            self._backend.serve(index)

    def _answer(self) -> None:
        """Let the transport hear of what the device did."""
        transport = self._machine.transport
        answers, self._backend.answers = self._backend.answers, []
        for what, index in answers:
            if what == "reset":
                transport.reset_done()
            elif what == "queue reset":
                transport.queue_reset_done(index)
            else:
                transport.set_needs_reset()

    def _end_process(self, source: Source) -> None:
        """The device dies, with everything that it owes: another takes its place, or none."""
        if one_in(source, 3):
            self._backend.end()
            self._lost = True
            self._machine.transport.backend_lost()
        else:
            self._replace()

    def _replace(self) -> None:
        self._backend.end()
        self._lost = False
        self._backend = LocalBackend(self._memory)
        self._machine.transport.reactivate(self._backend)

    def _check(self) -> None:
        """What holds whatever a driver does."""
        machine = self._machine
        ranges = [entry for entry in machine.mmio.ranges if entry.base != ECAM_BASE]
        assert all(entry.base >= WINDOW_BASE and entry.end <= WINDOW_END for entry in ranges)
        assert all(a.end <= b.base for a, b in pairwise(ranges))
        notify = [range(entry.base + 0x3000, entry.base + 0x3004) for entry in ranges]
        for address in machine.ioeventfds.registered:
            assert any(address in place for place in notify)
        status = machine.transport.status
        assert status in (0, status | self._status), "status bits vanished without a reset"
        self._status = status
        machine.routes.deliver()
        if machine.line.level:
            assert not machine.transport._msix.enabled
        for index, told in self._backend.started.items():
            queue = machine.transport._state.queues[index]
            addresses = [told.desc_table, told.avail_ring, told.used_ring]
            assert (queue.size, queue.addresses) == (told.size, addresses), "moved while it runs"

    def _recover(self, source: Source) -> None:
        """Reset and use the device as virtio 1.3 §3.1.1 says."""
        machine = self._machine
        if self._lost or one_in(source, 4):
            self._replace()
        machine.config_write(0x10, 4, WINDOW_BASE)
        machine.command(MEMORY | MASTER)
        machine.write(STATUS, 1, 0)
        self._answer()
        assert machine.status == 0, "the device does not come back"
        machine.negotiate(VERSION_1)
        machine.enable_msix(0, 1)
        ring = DriverQueue(self._memory, 8, base=GOOD_BASE, heap=GOOD_BASE + 0x2000)
        self._memory.write(GOOD_BASE, bytes(0x1000))
        machine.write(QUEUE_SELECT, 2, 0)
        machine.write(QUEUE_SIZE, 2, 8)
        for register, address in ((DESC, ring.desc_table), (AVAIL, ring.avail_ring)):
            machine.write(register, 8, address)
        machine.write(USED, 8, ring.used_ring)
        machine.write(QUEUE_VECTOR, 2, 1)
        machine.write(QUEUE_ENABLE, 2, 1)
        machine.add_status(4)
        ring.submit(into=[32])
        machine.routes.deliver()
        machine.notify(0)
        self._backend.serve(0)
        assert [used for _, used, _ in ring.collect()] == [32]
        assert machine.routes.deliver() == [(0xFEE0_0000, 0, 0x41)], "no interrupt"
        assert not machine.status & NEEDS_RESET
        self._status = machine.transport.status

    def close(self) -> None:
        """End the machine, which checks that nothing of it is left with KVM."""
        self._machine.close()
        self._memory.close()
        log.set_sink(log.stderr_sink)


def make(_source: Source) -> RegisterFuzzer:
    """Build the rig."""
    return RegisterFuzzer()
