# SPDX-License-Identifier: BSD-3-Clause
"""The vmm's part of devices that come and go: places, slots, names, pages; a guest that may lie."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, cast

import pytest

from crosvm_py.requests.pending import Pending
from crosvm_py.requests.plug import Plugged, Reserved
from crosvm_py.requests.protocol import Failed
from crosvm_py.vmm import plugging as plugging_module
from crosvm_py.vmm.plugging import Plugging
from crosvm_py.warden import protocol
from devices.pci.address import MAX_DEVICES
from sys_util.errors import ConfigError
from tests.crosvm_py.fake_warden import READY, FakeWarden

if TYPE_CHECKING:
    from collections.abc import Iterator

    from crosvm_py.machine.board import Board
    from crosvm_py.machine.growth import Growth
    from crosvm_py.machine.hotplug import HotPlug
    from crosvm_py.vmm.device_proxy import DeviceProcess
    from sys_util.wire import Message

TIMES = 100
SLOTS = 4


class Machine:
    """The board and the guest's ears: they note what is in the slots and what the guest is told."""

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self.slots = range(1, 1 + SLOTS)
        self.plugged_in: dict[int, str] = {}
        self.told: list[str] = []
        self.failure: Exception | None = None
        self.growth: Growth | None = None

    def is_free(self, slot: int) -> bool:
        return slot not in self.plugged_in

    def plug(self, device: DeviceProcess, slot: int) -> None:
        if self.failure is not None:
            raise self.failure
        self.plugged_in[slot] = device.name

    def unplug(self, slot: int) -> None:
        del self.plugged_in[slot]

    def plugged(self, slot: int) -> None:
        self.told.append(f"plugged {slot}")

    def ask_to_eject(self, slot: int) -> None:
        self.told.append(f"eject {slot}")

    def emptied(self, slot: int) -> None:
        self.told.append(f"emptied {slot}")


class Rig:
    """A vmm with a fake warden and a fake machine; one device, rng, is there from the start."""

    def __init__(self, slots: range = range(1, 1 + SLOTS)) -> None:
        self.warden = FakeWarden()
        boot = self.warden.spawn("rng")
        self.machine = Machine()
        self.machine.slots = slots
        self.machine.plugged_in[1] = boot.name
        self.plugging = Plugging(
            self.warden.loop,
            cast("Board", self.machine),
            self.warden.supervisor,
            cast("HotPlug", self.machine),
            cpus=2,
            slots={0: 1},
        )
        self.ids = 1

    def close(self) -> None:
        self.warden.close()
        self.plugging.close()

    def reserve(
        self, name: str = "", slot: int | None = None, kind: str = "block", segment: int = 0
    ) -> Reserved:
        return self.plugging.reserve(kind, name, slot, segment)

    def order(self, place: Reserved, kind: str = "block") -> int:
        """Say, as the warden, that the device was ordered; return its number."""
        number, self.ids = self.ids, self.ids + 1
        added = protocol.Added(number, place.place, place.name, kind, writes_file=False)
        self.warden.send(added)
        return number

    def begin(self, name: str = "", slot: int | None = None) -> tuple[int, list[Message]]:
        """Make a device's process; return its number, and the answer once there is one."""
        place = self.reserve(name, slot)
        answers: list[Message] = []
        self.plugging.wait(place.place).deliver_to(answers.append)
        number = self.order(place)
        assert isinstance(self.warden.make(number), protocol.Respawn)
        return number, answers

    def plug(self, name: str = "", slot: int | None = None) -> tuple[int, Message]:
        """Plug a device in; return its number and the answer."""
        number, answers = self.begin(name, slot)
        return number, answers[0]

    def eject(self, slot: int) -> None:
        with self.machine.lock:
            self.plugging.on_eject(slot)
        self.warden.turn()

    def forgotten(self, number: int) -> None:
        """Say, as the warden, that nothing is left, once it was asked to forget."""
        while (message := self.warden.take()[0]) != protocol.Forget(number):
            assert isinstance(message, protocol.Kill)
        self.warden.send(protocol.Forgotten(number))


@pytest.fixture
def rig(lines: list[str]) -> Iterator[Rig]:
    rig = Rig()
    yield rig
    rig.close()
    assert rig.warden.deaths == []


def test_device_is_shown_to_the_guest_once_its_process_is_ready(rig: Rig) -> None:
    place = rig.reserve("data")
    assert (place.name, place.cpus) == ("data", 2)
    answers: list[Message] = []
    rig.plugging.wait(place.place).deliver_to(answers.append)
    number = rig.order(place)
    assert (answers, rig.machine.told) == ([], [])
    rig.warden.make(number, ready=READY)
    assert answers == [Plugged("data", "0000:00:02.0")]
    assert rig.machine.told == ["plugged 2"]
    assert rig.machine.plugged_in == {1: "rng", 2: "data"}


def test_names_and_slots_are_the_lowest_that_are_free(rig: Rig) -> None:
    assert rig.plug()[1] == Plugged("block:0", "0000:00:02.0")
    assert rig.plug(slot=4)[1] == Plugged("block:1", "0000:00:04.0")
    assert rig.reserve(kind="rng").name == "rng:1"  # slot 3
    with pytest.raises(ConfigError, match="all 4 PCI slots are in use"):
        rig.reserve()


@pytest.fixture
def segments(lines: list[str]) -> Iterator[Rig]:
    rig = Rig(range(1, 16 * 32))
    yield rig
    rig.close()


def test_there_are_fewer_devices_than_slots_of_all_segments(segments: Rig) -> None:
    for at in range(MAX_DEVICES - 1):
        segments.reserve(segment=at % 16)
    with pytest.raises(ConfigError, match=f"this VM has {MAX_DEVICES} devices"):
        segments.reserve()


def test_each_segment_has_slots_of_its_own(segments: Rig) -> None:
    rig = segments
    for at in range(32):
        assert rig.reserve(f"b{at}", segment=1).name == f"b{at}"
    for _ in range(TIMES):
        with pytest.raises(ConfigError, match="all 32 PCI slots of segment 1 are in use"):
            rig.reserve(segment=1)
    with pytest.raises(ConfigError, match=r"pci-segment 16: this VM has 16 \(0..15\)"):
        rig.reserve(segment=16)
    with pytest.raises(ConfigError, match=r"pci-slot 32: slots for devices are 0\.\.31$"):
        rig.reserve(slot=32, segment=1)
    rig.plugging.release_all()
    place = rig.reserve("data", segment=1)
    answers: list[Message] = []
    rig.plugging.wait(place.place).deliver_to(answers.append)
    rig.warden.make(rig.order(place))
    assert answers == [Plugged("data", "0001:00:00.0")]
    assert rig.machine.told == ["plugged 32"]


def test_device_goes_when_the_guest_has_ejected_it_and_can_come_again(rig: Rig) -> None:
    for _ in range(TIMES):
        number, answer = rig.plug("data")
        assert answer == Plugged("data", "0000:00:02.0")
        rig.plugging.unplug("data")
        assert rig.machine.told[-1] == "eject 2"
        assert rig.machine.plugged_in[2] == "data"
        rig.eject(2)
        assert rig.machine.plugged_in == {1: "rng"}
        assert [device.name for device in rig.warden.supervisor.devices] == ["rng"]
        with pytest.raises(ConfigError, match="has it already"):  # something of it is left
            rig.reserve("data")
        rig.forgotten(number)


def test_reservation_waits_for_what_is_left_of_a_device(rig: Rig) -> None:
    number, _ = rig.plug("data")
    rig.plugging.unplug("data")
    rig.eject(2)
    answers: list[Message] = []
    waits = rig.plugging.reserve_soon("block", "data", None)
    assert isinstance(waits, Pending)
    waits.deliver_to(answers.append)
    assert answers == []
    rig.forgotten(number)
    (place,) = answers
    assert isinstance(place, Reserved)
    assert place.name == "data"
    assert isinstance(rig.plugging.reserve_soon("block", "other", None), Reserved)


def test_reservation_does_not_wait_for_ever(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plugging_module, "LEAVE_SECONDS", 0.0)
    number, _ = rig.plug("data")
    rig.plugging.unplug("data")
    rig.eject(2)
    answers: list[Message] = []
    waits = rig.plugging.reserve_soon("block", "data", None)
    assert isinstance(waits, Pending)
    waits.deliver_to(answers.append)
    rig.warden.turn()
    assert answers == [Failed("id data: a device of this VM has it already")]
    rig.forgotten(number)


def test_second_removal_fails_and_asks_the_guest_again(rig: Rig) -> None:
    rig.plug("data")
    rig.plugging.unplug("data")
    for _ in range(TIMES):
        with pytest.raises(ConfigError, match="being removed already"):
            rig.plugging.unplug("data")
    assert rig.machine.told.count("eject 2") == TIMES + 1


def test_device_of_the_start_is_not_removed_unless_its_kind_is(rig: Rig) -> None:
    with pytest.raises(ConfigError, match="a rng of the start cannot be removed"):
        rig.plugging.unplug("rng")
    with pytest.raises(ConfigError, match="no device 'data' \\(it has rng\\)"):
        rig.plugging.unplug("data")
    assert rig.machine.told == []


def test_eject_that_nobody_asked_for_is_ignored(rig: Rig) -> None:
    rig.plug("data")
    for _ in range(TIMES):
        for slot in range(32):
            rig.eject(slot)
    assert rig.machine.plugged_in == {1: "rng", 2: "data"}


def test_guest_that_ejects_many_times_is_heard_once(rig: Rig) -> None:
    number, _ = rig.plug("data")
    rig.plugging.unplug("data")
    with rig.machine.lock:
        for _ in range(TIMES):
            rig.plugging.on_eject(2)
    rig.warden.turn()
    assert rig.machine.told.count("emptied 2") == 1
    rig.forgotten(number)


def test_device_without_a_process_can_be_removed(rig: Rig) -> None:
    number, _ = rig.plug("data")
    rig.warden.devices[number].close()
    rig.warden.turn()
    rig.plugging.unplug("data")
    rig.eject(2)
    rig.forgotten(number)
    assert rig.machine.plugged_in == {1: "rng"}


def test_device_that_does_not_start_leaves_nothing(rig: Rig) -> None:
    for _ in range(TIMES):
        place = rig.reserve("data")
        answers: list[Message] = []
        rig.plugging.wait(place.place).deliver_to(answers.append)
        number = rig.order(place)
        rig.warden.take()
        rig.warden.send(protocol.SpawnFailed(number, "no room"))
        assert answers == []  # until nothing is left
        rig.forgotten(number)
        assert answers == [Failed("data: no room")]
    assert rig.machine.plugged_in == {1: "rng"}


def test_device_that_fits_into_no_slot_leaves_nothing(rig: Rig) -> None:
    rig.machine.failure = ValueError("no bytes left in PCI window")
    for _ in range(TIMES):
        number, answers = rig.begin("data")
        rig.forgotten(number)
        assert answers == [Failed("no bytes left in PCI window")]
    rig.machine.failure = None
    assert rig.plug("data")[1] == Plugged("data", "0000:00:02.0")


def test_released_place_answers_and_is_free(rig: Rig) -> None:
    for _ in range(TIMES):
        place = rig.reserve("data", 4)
        answers: list[Message] = []
        rig.plugging.wait(place.place).deliver_to(answers.append)
        rig.plugging.release(place.place, "no such file")
        assert answers == [Failed("data: no such file")]
    with pytest.raises(ConfigError, match="not reserved"):
        rig.plugging.release(place.place, "")
    with pytest.raises(ConfigError, match="not reserved"):
        rig.plugging.wait(place.place)


def test_places_of_a_control_process_that_ended_are_free(rig: Rig) -> None:
    for _ in range(TIMES):
        for name in ("a", "b", "c"):
            rig.reserve(name)
        rig.plugging.release_all()
    late = rig.reserve("late")
    rig.plugging.release_all()
    number = rig.order(late)  # its opener had ordered it before it was killed
    assert rig.warden.take()[0] == protocol.Forget(number)
    rig.warden.send(protocol.Forgotten(number))


def test_place_that_nothing_is_ordered_for_is_free_after_its_time(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(plugging_module, "ORDER_SECONDS", 0.0)
    place = rig.reserve("data")
    answers: list[Message] = []
    rig.plugging.wait(place.place).deliver_to(answers.append)
    rig.warden.turn()
    assert answers == [Failed("data: not opened within 0 s")]


def test_order_under_another_name_or_twice_is_forgotten(rig: Rig) -> None:
    place = rig.reserve("data")
    other = protocol.Added(7, place.place, "other", "block", writes_file=False)
    rig.warden.send(other)
    assert rig.warden.take()[0] == protocol.Forget(7)
    rig.ids = 8
    rig.order(place)
    rig.warden.take()
    again = rig.order(place)
    assert rig.warden.take()[0] == protocol.Forget(again)


def test_only_one_vsock_can_be_there(rig: Rig) -> None:
    rig.reserve(kind="vsock")
    with pytest.raises(ConfigError, match="has a vsock already"):
        rig.reserve(kind="vsock")


@pytest.mark.parametrize("name", ["__x", ".", "a/b", "ä", "a b", "x" * 65])
def test_names_that_no_device_can_have_are_refused(rig: Rig, name: str) -> None:
    for _ in range(TIMES):
        with pytest.raises(ConfigError, match="is no id of a device"):
            rig.reserve(name)


@pytest.mark.parametrize(
    ("slot", "reason"), [(0, "0 is the bridge"), (1, "slot 1: is in use"), (5, "slots for devices")]
)
def test_slots_that_are_not_free_are_refused(rig: Rig, slot: int, reason: str) -> None:
    for _ in range(TIMES):
        with pytest.raises(ConfigError, match=reason):
            rig.reserve("data", slot)


def test_device_of_a_suspended_vm_is_paused_before_its_driver_sees_it(rig: Rig) -> None:
    rig.plugging.is_paused = lambda: True
    number, _ = rig.plug("data")
    device = rig.warden.supervisor.devices[-1]
    assert device.device_id == number
    assert rig.warden.devices[number].receive() is not None  # Pause
    device.resume(lambda: None)
