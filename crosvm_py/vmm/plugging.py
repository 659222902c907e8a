# SPDX-License-Identifier: BSD-3-Clause
"""The vmm's part when a device is plugged in or removed while the guest runs.

The vmm orders no device, because a guest may have taken it over. It only reserves a *place* for
one: a name, a slot and a page for its counters. The control process has its opener order the device
of the warden, and the warden tells the vmm that it has it. Then the vmm asks for its process, as it
does for one that has ended, and puts the device into its slot when the process is ready.

A removal waits for the guest, but no call does: a device that the guest does not eject stays.
"""

from __future__ import annotations

from crosvm_py.kinds.kind import NO_GROWTH
from crosvm_py.kinds.order import is_device_name
from crosvm_py.kinds.table import DEVICE_KINDS
from crosvm_py.machine.slots import in_segment, slot_segments
from crosvm_py.requests.pending import Pending
from crosvm_py.requests.plug import Plugged, Reserved
from crosvm_py.requests.protocol import MAX_REASON_CHARS, Failed
from crosvm_py.vmm.page_pool import PagePool
from devices.pci.address import MAX_DEVICES, SEGMENT_SLOTS, pci_address, slot_number
from sys_util.errors import ConfigError, VmmError, describe
from sys_util.log import get_logger
from sys_util.stranger import brief
from sys_util.typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable

    from crosvm_py.machine.board import Board
    from crosvm_py.machine.hotplug import HotPlug
    from crosvm_py.vmm.device_proxy import DeviceProcess
    from crosvm_py.vmm.supervisor import Supervisor
    from crosvm_py.warden.protocol import Added
    from sys_util.event_loop import EventLoop, Timer
    from sys_util.shared_page import SharedPage

log = get_logger("crosvm.devices")

# The most time from the reservation of a place to the warden's word that the device was ordered.
# Opening an image takes milliseconds, unless its file system hangs.
ORDER_SECONDS: Final = 60.0

# The most time that a reservation waits for the end of devices that were removed.
LEAVE_SECONDS: Final = 5.0

# Kinds of which a VM has one device at most, and what the two ways to serve it are called.
_SINGLE: Final = {"vsock": ("vsock", "vhost-vsock")}
# Kinds whose devices have a number in their names from the start.
_NUMBERED: Final = ("block", "net")


class _Place:
    """What is reserved for one device. ``device`` is there once the warden has it."""

    def __init__(self, number: int, kind: str, name: str, slot: int, page: SharedPage) -> None:
        self.number = number
        self.kind = kind
        self.name = name
        self.slot = slot
        self.page = page
        self.answer = Pending()
        self.timer: Timer | None = None
        self.device: DeviceProcess | None = None


class Plugging:
    """The devices that come and go. Lives in the event loop's thread, but for ``on_eject``."""

    def __init__(
        self,
        loop: EventLoop,
        machine: Board,
        supervisor: Supervisor,
        hotplug: HotPlug,
        cpus: int,
        slots: dict[int, int],
    ) -> None:
        """Make what devices need that may come; ``slots`` are those of the devices of the start.

        Raises:
            HostError: the host refuses it.
        """
        self._loop = loop
        self._machine = machine
        self._supervisor = supervisor
        self._hotplug = hotplug
        self._cpus = cpus
        count = min(len(machine.slots), MAX_DEVICES) - len(supervisor.devices)
        self._pages = PagePool(max(count, 0))
        self._lent: dict[int, SharedPage] = {}  # by the device's number
        self._slots = slots
        self._places: dict[int, _Place] = {}
        self._next = 0  # place numbers are never used again
        self._removing: set[int] = set()  # slots that the guest is asked to eject
        self._leaving: set[int] = set()  # devices of which something may be left
        self._waiting: list[Callable[[], None]] = []  # reservations, until nothing is left
        self._ejected: set[int] = set()  # of them, those that the loop has yet to hear of
        self.is_paused: Callable[[], bool] = lambda: False  # whether devices stand still now
        self.is_rebooting: Callable[[], bool] = lambda: False  # ``on_restart`` follows
        self.cgroup = ""  # the VM's group, if it has one
        # Called with each device that came, before its driver can use it, and that has gone.
        self.on_plugged: Callable[[DeviceProcess], None] = lambda _device: None
        self.on_removed: Callable[[DeviceProcess], None] = lambda _device: None
        supervisor.on_added = self._on_added

    def close(self) -> None:
        """Close the pages, and answer whoever waits; the supervisor has ended."""
        for serve in tuple(self._waiting):
            serve()
        for place in list(self._places.values()):
            self._leave(place)
            place.answer.complete(Failed(f"{place.name}: the VM ends"))
        self._pages.close()

    # Plug in.

    @property
    def slots(self) -> dict[int, int]:
        """The number of the PCI slot of each device, by the device's number."""
        return self._slots

    def reserve_soon(
        self, kind: str, name: str, slot: int | None, segment: int = 0
    ) -> Reserved | Pending:
        """Reserve a place, after what is left of devices that are going has gone.

        So a device can come again at once, with the same name and image; but no client waits for
        longer than ``LEAVE_SECONDS``.

        Raises:
            ConfigError: as ``reserve``.
        """
        if not self._leaving:
            return self.reserve(kind, name, slot, segment)
        answer = Pending()

        def serve() -> None:
            if serve in self._waiting:
                self._waiting.remove(serve)
                try:
                    answer.complete(self.reserve(kind, name, slot, segment))
                except ConfigError as error:
                    answer.complete(Failed(str(error)[:MAX_REASON_CHARS]))

        self._waiting.append(serve)
        self._loop.call_later(LEAVE_SECONDS, serve)
        return answer

    def reserve(self, kind: str, name: str, slot: int | None, segment: int = 0) -> Reserved:
        """Reserve a place for a device, for ``ORDER_SECONDS``.

        Raises:
            ConfigError: the name or the slot is not free or none at all, or nothing is left.
        """
        used = self._names()
        kinds = _SINGLE.get(kind, ())
        if any(device.kind.name in kinds for device in self._supervisor.devices) or any(
            place.kind == kind for place in self._places.values() if kinds
        ):
            raise ConfigError(f"this VM has a {kind} already")
        if not name:
            name = _free_name(kind, used)
        elif not is_device_name(name):
            raise ConfigError(
                f"{brief(name)} is no id of a device: up to 64 letters, digits and _-:.@+"
            )
        elif name in used:
            raise ConfigError(f"id {name}: a device of this VM has it already")
        number = self._free_slot(slot, segment)
        page = self._pages.take()
        if page is None and len(self._slots) + len(self._places) >= MAX_DEVICES:
            raise ConfigError(f"this VM has {MAX_DEVICES} devices, which is the most")
        if page is None:
            raise ConfigError("a device that was removed has not ended yet: try again")
        place = _Place(self._next, kind, name, number, page)
        self._next += 1
        self._places[place.number] = place
        place.timer = self._loop.call_later(
            ORDER_SECONDS, lambda: self._give_up(place, f"not opened within {ORDER_SECONDS:.0f} s")
        )
        return Reserved(place.number, name, self._cpus)

    def wait(self, number: int) -> Pending:
        """Return the answer for a place: ``Plugged`` or ``Failed``.

        Raises:
            ConfigError: there is no such place (any more).
        """
        return self._place(number).answer

    def release(self, number: int, reason: str) -> None:
        """Give up a place for which nothing was ordered.

        Raises:
            ConfigError: there is no such place (any more).
        """
        place = self._place(number)
        if place.device is None:
            self._give_up(place, reason)

    def release_all(self) -> None:
        """Give up every place for which nothing was ordered: the control process has ended."""
        for place in list(self._places.values()):
            if place.device is None:
                self._give_up(place, "the control process has ended")

    def _place(self, number: int) -> _Place:
        place = self._places.get(number)
        if place is None:
            raise ConfigError(f"place {number} is not reserved")
        return place

    def _names(self) -> set[str]:
        return {
            *(device.name for device in self._supervisor.all_devices),
            *(place.name for place in self._places.values()),
        }

    def _free_slot(self, slot: int | None, segment: int) -> int:
        """Return the number of a free slot: ``slot`` of the segment, or its lowest one."""
        slots = in_segment(self._machine.slots, segment)
        if not slots:
            count = slot_segments(self._machine.slots)
            raise ConfigError(f"pci-segment {segment}: this VM has {count} (0..{count - 1})")
        reserved = {place.slot for place in self._places.values()}
        free = [each for each in slots if self._machine.is_free(each) and each not in reserved]
        where = f" of segment {segment}" if segment else ""
        if slot is None and not free:
            raise ConfigError(f"all {len(slots)} PCI slots{where} are in use")
        if slot is None:
            return free[0]
        number = slot_number(segment, slot)
        if slot >= SEGMENT_SLOTS or number not in slots:
            first, last = (each % SEGMENT_SLOTS for each in (slots[0], slots[-1]))
            bridge = " (0 is the bridge)" if first else ""
            raise ConfigError(f"pci-slot {slot}: slots for devices are {first}..{last}{bridge}")
        if number not in free:
            raise ConfigError(f"pci-slot {slot}: is in use")
        return number

    def _give_up(self, place: _Place, reason: str) -> None:
        """Give up a place that has no device."""
        self._leave(place)
        self._pages.give_back(place.page)
        place.answer.complete(Failed(f"{place.name}: {reason}"[:MAX_REASON_CHARS]))

    def _leave(self, place: _Place) -> None:
        self._places.pop(place.number, None)
        if place.timer is not None:
            place.timer.cancel()

    def _on_added(self, added: Added) -> None:
        """Have the process of a device made that the warden now has."""
        place = self._places.get(added.place)
        if place is None or place.device is not None or added.name != place.name:
            self._supervisor.forget(added)
            return
        if self._machine.growth is not None and DEVICE_KINDS[added.kind].in_kernel:
            self._supervisor.forget(added)
            self._give_up(place, NO_GROWTH)
            return
        if place.timer is not None:
            place.timer.cancel()
        self._lent[added.device_id] = place.page
        place.device = self._supervisor.add(
            added, place.page, lambda reason: self._on_first(place, reason)
        )
        if self.cgroup:
            place.device.cgroup = f"{self.cgroup}/{place.name}"

    def _on_first(self, place: _Place, reason: str) -> None:
        """Put a device into its slot, now that its process is ready; or drop it."""
        device = place.device
        if device is None:
            return
        if not reason:
            try:
                self._insert(device, place.slot)
            except (VmmError, ValueError, OSError) as error:
                reason = describe(error) if isinstance(error, VmmError) else f"{error}"
        self._leave(place)
        if reason:
            log.error("%s", reason)
            failed = Failed(reason[:MAX_REASON_CHARS])
            # When nothing is left of it, so that the client can try again at once.
            self._remove(device, lambda: place.answer.complete(failed))
            return
        self.on_plugged(device)
        self._hotplug.plugged(place.slot)
        address = pci_address(place.slot)
        log.info("%s: plugged into PCI slot %s", device.name, address)
        place.answer.complete(Plugged(device.name, address))

    def _insert(self, device: DeviceProcess, slot: int) -> None:
        if self.is_paused():
            device.pause(lambda: None)
        device.events = self._machine.plug(device, slot)
        self._slots[device.device_id] = slot

    def _remove(self, device: DeviceProcess, then: Callable[[], None] = lambda: None) -> None:
        number = device.device_id
        self._slots.pop(number, None)
        self._leaving.add(number)

        def forgotten() -> None:
            self._leaving.discard(number)
            page = self._lent.pop(number, None)
            if page is not None:
                self._pages.give_back(page)
            then()
            if not self._leaving:
                for serve in tuple(self._waiting):
                    serve()

        self._supervisor.remove(device, forgotten)

    # Remove.

    def unplug(self, name: str) -> None:
        """Ask the guest to let a device go; it is removed when the guest has done so.

        Raises:
            ConfigError: there is no such device, it cannot be removed, or it is being removed.
        """
        known = {device.name: device for device in self._supervisor.devices}
        device = known.get(name)
        if device is None or device.device_id not in self._slots:
            names = ", ".join(known) or "none at all"
            raise ConfigError(f"this VM has no device {brief(name)} (it has {names})")
        slot = self._slots[device.device_id]
        if not device.kind.removable and device.device_id not in self._lent:
            raise ConfigError(f"{name}: a {device.kind.name} of the start cannot be removed")
        with self._machine.lock:
            again = slot in self._removing
            self._removing.add(slot)
        self._hotplug.ask_to_eject(slot)
        if again:
            raise ConfigError(
                f"{name}: is being removed already; the guest, which has yet to let it go, was "
                "asked again"
            )
        log.info("%s: the guest is asked to let it go", name)

    def on_restart(self) -> None:
        """Take out what the guest was to let go: the machine was reset, and none uses it."""
        for slot in sorted(self._removing):
            self._take_out(slot)

    def on_eject(self, slot: int) -> None:
        """Note that the guest has let a device go. In a vCPU thread, with the device-model lock.

        A device that nobody has asked it to let go stays.
        """
        if slot in self._removing and slot not in self._ejected:
            self._ejected.add(slot)
            self._loop.call_soon_threadsafe(lambda: self._on_ejected(slot))

    def _on_ejected(self, slot: int) -> None:
        # While the machine is reset, its process may not have let go of guest memory.
        if slot in self._ejected and not self.is_rebooting():
            self._take_out(slot)

    def _take_out(self, slot: int) -> None:
        number = next(number for number, place in self._slots.items() if place == slot)
        device = next(d for d in self._supervisor.devices if d.device_id == number)
        self._machine.unplug(slot)
        self._hotplug.emptied(slot)
        with self._machine.lock:
            self._removing.discard(slot)
            self._ejected.discard(slot)
        self._remove(device)
        log.info("%s: removed from PCI slot %s", device.name, pci_address(slot))
        self.on_removed(device)


def _free_name(kind: str, used: set[str]) -> str:
    """Return the first free one of block:0, block:1 …, or of rng, rng:1 …"""
    names = (
        kind if not n and kind not in _NUMBERED else f"{kind}:{n}" for n in range(len(used) + 1)
    )
    return next(name for name in names if name not in used)
