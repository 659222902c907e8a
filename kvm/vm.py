# SPDX-License-Identifier: BSD-3-Clause
"""KVM's device and a VM as objects that own their descriptors. vCPUs are in ``vcpu.py``."""

from __future__ import annotations

import errno
import os

from kvm._kvm import ffi, lib
from kvm.ioctl import ioctl, ioctl_int, refuse
from sys_util.errors import HostError
from sys_util.typing import TYPE_CHECKING, Final, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from typing import Self, TypeVar

    from _typeshed import WriteableBuffer

    from kvm.vcpu import Vcpu

    AnyVm = TypeVar("AnyVm", bound="Vm")
    AnyVcpu = TypeVar("AnyVcpu", bound=Vcpu)

REQUIRED_EXTENSIONS: Final = {
    lib.KVM_CAP_IRQCHIP: "KVM_CAP_IRQCHIP",
    lib.KVM_CAP_USER_MEMORY: "KVM_CAP_USER_MEMORY",
    lib.KVM_CAP_IRQ_ROUTING: "KVM_CAP_IRQ_ROUTING",
    lib.KVM_CAP_IRQFD: "KVM_CAP_IRQFD",
    lib.KVM_CAP_IOEVENTFD: "KVM_CAP_IOEVENTFD",
    lib.KVM_CAP_IMMEDIATE_EXIT: "KVM_CAP_IMMEDIATE_EXIT",
}

_OPEN_HINTS: Final = {
    errno.ENOENT: "load the module kvm_intel or kvm_amd; inside a virtual machine, nested"
    " virtualization must be on",
    errno.ENODEV: "load the module kvm_intel or kvm_amd",
    errno.ENXIO: "load the module kvm_intel or kvm_amd",
    errno.EACCES: "join the group that owns it, usually: usermod -aG kvm USER, then log in again",
    errno.EPERM: "the container or device cgroup does not allow this device",
}


class ChipRoute(NamedTuple):
    """A GSI that drives a pin of one of KVM's interrupt controllers (``KVM_IRQCHIP_…``)."""

    gsi: int
    chip: int
    pin: int


class MsiRoute(NamedTuple):
    """A GSI that sends a message-signalled interrupt."""

    gsi: int
    address: int
    data: int


def host_has_hardware_virtualization() -> bool:
    """Return whether the processor offers VMX or SVM. It opens no file: it works in a sandbox."""
    return bool(lib.crosvm_has_hardware_virtualization())


class Kvm:
    """An open ``/dev/kvm``."""

    def __init__(self, fd: int, path: str) -> None:
        self.fd = fd
        self.path = path
        # A VM that was made before its run, with interrupt controllers and without memory.
        self.ready_vm: Vm | None = None

    @classmethod
    def open(cls, path: str = "/dev/kvm") -> Self:
        """Open the device and check that it has all that a VM needs.

        Raises:
            HostError: it is missing, not allowed, not KVM or too old. The hint says what to do.
        """
        try:
            fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        except OSError as error:
            hint = _OPEN_HINTS.get(error.errno or 0, "")
            raise HostError("open", path, hint) from error
        kvm = cls(fd, path)
        try:
            kvm._check()
        except HostError:
            kvm.close()
            raise
        return kvm

    def _check(self) -> None:
        version = lib.crosvm_ioctl_int(self.fd, lib.KVM_GET_API_VERSION, 0)
        if version < 0:
            refuse("KVM_GET_API_VERSION", self.path, -version, "this is not KVM")
        if version != lib.KVM_API_VERSION:
            hint = f"version {version}, needed is {lib.KVM_API_VERSION}"
            raise HostError("KVM_GET_API_VERSION", self.path, hint)
        self.require(REQUIRED_EXTENSIONS)

    def require(self, extensions: Mapping[int, str]) -> None:
        """Check that KVM has all of these: ``KVM_CAP_…`` and their names.

        Raises:
            HostError: it lacks one.
        """
        missing = [name for cap, name in extensions.items() if not self.check_extension(cap)]
        if missing:
            raise HostError("use", self.path, "this kernel's KVM lacks " + ", ".join(missing))

    def check_extension(self, capability: int) -> int:
        """Return KVM's answer for a ``KVM_CAP_…``; 0 means absent."""
        return max(0, lib.crosvm_ioctl_int(self.fd, lib.KVM_CHECK_EXTENSION, capability))

    @property
    def max_vcpus(self) -> int:
        """How many vCPUs one VM can have."""
        return self.check_extension(lib.KVM_CAP_MAX_VCPUS) or 4

    def create_vm(self, architecture: type[AnyVm]) -> AnyVm:
        """Create a VM without memory, interrupt controllers or vCPUs; it is an ``architecture``.

        Raises:
            HostError: the host lacks memory or descriptors, or another hypervisor uses the
                processor.
        """
        while True:
            fd = lib.crosvm_ioctl_int(self.fd, lib.KVM_CREATE_VM, 0)
            if fd != -errno.EINTR:  # a signal came while the kernel allocated memory: try again
                break
        if fd < 0:
            hint = "another hypervisor is using the processor" if fd == -errno.EBUSY else ""
            refuse("KVM_CREATE_VM", self.path, -fd, hint)
        os.set_inheritable(fd, False)
        run_bytes = ioctl_int(
            self.fd, lib.KVM_GET_VCPU_MMAP_SIZE, 0, "KVM_GET_VCPU_MMAP_SIZE", self.path
        )
        any_length = self.check_extension(lib.KVM_CAP_IOEVENTFD_ANY_LENGTH) != 0
        return architecture(fd, run_bytes, ioeventfd_any_length=any_length)

    def close(self) -> None:
        """Close the device. The VMs made with it are not affected."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1


class Vm:
    """What virtual machines of every architecture have; ``x86_64.py`` has the rest of one.

    It keeps an export of each memory buffer, which prevents its unmapping.
    """

    def __init__(self, fd: int, run_bytes: int, *, ioeventfd_any_length: bool) -> None:
        self.fd = fd
        self._run_bytes = run_bytes
        # A driver notifies a device with a write of 2 or 4 bytes (virtio 1.3 §4.1.5.2).
        self._ioeventfd_lengths = (0,) if ioeventfd_any_length else (2, 4)
        # No objects of cffi: if one of those views a memoryview, and the garbage collector finds
        # both in a circle, Python crashes.
        self._memory: dict[int, memoryview] = {}

    def add_memory(
        self, slot: int, gpa: int, buffer: WriteableBuffer, *, read_only: bool = False
    ) -> None:
        """Let the guest see ``buffer``, which consists of whole pages, at ``gpa``.

        Raises:
            HostError: the slot is in use, or the range overlaps another one.
        """
        pages = memoryview(buffer)
        address = ffi.cast("uintptr_t", ffi.from_buffer(pages, require_writable=True))
        region = {
            "slot": slot,
            "flags": lib.KVM_MEM_READONLY if read_only else 0,
            "guest_phys_addr": gpa,
            "memory_size": pages.nbytes,
            "userspace_addr": int(address),
        }
        if slot in self._memory:
            refuse("KVM_SET_USER_MEMORY_REGION", f"slot {slot}", errno.EEXIST)
        self._set_memory(region)
        self._memory[slot] = pages

    def remove_memory(self, slot: int) -> None:
        """Remove a slot. Its buffer can be unmapped afterwards."""
        self._set_memory(
            {"slot": slot, "flags": 0, "guest_phys_addr": 0, "memory_size": 0, "userspace_addr": 0}
        )
        self._memory.pop(slot).release()

    def _set_memory(self, region: dict[str, int]) -> None:
        ioctl(
            self.fd,
            lib.KVM_SET_USER_MEMORY_REGION,
            ffi.new("struct kvm_userspace_memory_region *", region),
            "KVM_SET_USER_MEMORY_REGION",
            f"slot {region['slot']} at {region['guest_phys_addr']:#x}+{region['memory_size']:#x}",
        )

    def set_irq_line(self, gsi: int, *, asserted: bool) -> None:
        """Drive an interrupt line."""
        level = ffi.new("struct kvm_irq_level *", {"irq": gsi, "level": int(asserted)})
        ioctl(self.fd, lib.KVM_IRQ_LINE, level, "KVM_IRQ_LINE", f"GSI {gsi}")

    def assign_irqfd(self, gsi: int, eventfd: int) -> None:
        """Let KVM raise ``gsi`` when ``eventfd`` is signalled, at once if it is signalled now."""
        self._irqfd(gsi, eventfd, 0)

    def deassign_irqfd(self, gsi: int, eventfd: int) -> None:
        """Undo ``assign_irqfd``. The eventfd still counts later signals."""
        self._irqfd(gsi, eventfd, lib.KVM_IRQFD_FLAG_DEASSIGN)

    def _irqfd(self, gsi: int, eventfd: int, flags: int) -> None:
        irqfd = ffi.new("struct kvm_irqfd *", {"fd": eventfd, "gsi": gsi, "flags": flags})
        ioctl(self.fd, lib.KVM_IRQFD, irqfd, "KVM_IRQFD", f"GSI {gsi}")

    def register_ioeventfd(
        self, eventfd: int, address: int, length: int = 0, *, pio: bool = False
    ) -> None:
        """Let KVM signal ``eventfd`` when the guest writes to ``address``.

        ``length`` 0 means writes of every length.

        Raises:
            HostError: another eventfd has this address already, or KVM's table is full.
        """
        done: list[int] = []
        flags = lib.KVM_IOEVENTFD_FLAG_PIO if pio else 0
        try:
            for one in self._lengths(length):
                self._ioeventfd(eventfd, address, one, flags)
                done.append(one)
        except HostError:
            for one in done:
                self._ioeventfd(eventfd, address, one, flags | lib.KVM_IOEVENTFD_FLAG_DEASSIGN)
            raise

    def unregister_ioeventfd(
        self, eventfd: int, address: int, length: int = 0, *, pio: bool = False
    ) -> None:
        """Undo ``register_ioeventfd`` with the same arguments."""
        flags = lib.KVM_IOEVENTFD_FLAG_DEASSIGN | (lib.KVM_IOEVENTFD_FLAG_PIO if pio else 0)
        for one in self._lengths(length):
            self._ioeventfd(eventfd, address, one, flags)

    def _lengths(self, length: int) -> tuple[int, ...]:
        return (length,) if length else self._ioeventfd_lengths

    def _ioeventfd(self, eventfd: int, address: int, length: int, flags: int) -> None:
        fields = {"addr": address, "len": length, "fd": eventfd, "flags": flags}
        event = ffi.new("struct kvm_ioeventfd *", fields)
        ioctl(self.fd, lib.KVM_IOEVENTFD, event, "KVM_IOEVENTFD", f"at {address:#x}")

    def set_gsi_routing(
        self, chip_routes: Sequence[ChipRoute], msi_routes: Sequence[MsiRoute]
    ) -> None:
        """Replace the whole table of GSI routes."""
        count = len(chip_routes) + len(msi_routes)
        table = ffi.new("struct kvm_irq_routing *", {"nr": count, "entries": count})
        for at, (gsi, chip, pin) in enumerate(chip_routes):
            lib.crosvm_chip_route(table, at, gsi, chip, pin)
        for at, (gsi, address, data) in enumerate(msi_routes, len(chip_routes)):
            lib.crosvm_msi_route(table, at, gsi, address, data)
        ioctl(self.fd, lib.KVM_SET_GSI_ROUTING, table, "KVM_SET_GSI_ROUTING", f"{count} routes")

    def signal_msi(self, address: int, data: int) -> None:
        """Send one message-signalled interrupt, for which no route is needed."""
        fields = {"address_lo": address & 0xFFFF_FFFF, "address_hi": address >> 32, "data": data}
        message = ffi.new("struct kvm_msi *", fields)
        ioctl(self.fd, lib.KVM_SIGNAL_MSI, message, "KVM_SIGNAL_MSI", f"to {address:#x}")

    def _create_vcpu(self, architecture: type[AnyVcpu], index: int, kvm_id: int) -> AnyVcpu:
        fd = ioctl_int(self.fd, lib.KVM_CREATE_VCPU, kvm_id, "KVM_CREATE_VCPU", f"{index}")
        os.set_inheritable(fd, False)
        return architecture(index, fd, self._run_bytes)

    def close(self) -> None:
        """Close the VM and release its memory. The owner of the vCPUs closes them before."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1
        for pages in self._memory.values():
            pages.release()
        self._memory.clear()
