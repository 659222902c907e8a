# SPDX-License-Identifier: BSD-3-Clause
"""The command lines of the monitors that are compared: the same guest for each."""

from __future__ import annotations

import base64
from typing import TYPE_CHECKING, Final, NamedTuple

from tests.bench.results import OURS

if TYPE_CHECKING:
    from pathlib import Path

QEMU: Final = (
    *("qemu-system-x86_64", "-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"),
    *("-serial", "stdio"),
)
MICROVM: Final = "QEMU microvm"
Q35: Final = "QEMU q35"
MONITORS: Final = (OURS, MICROVM, Q35)

# Debian's QEMU has no PCI on microvm, and on q35 what a PC has.
_MACHINES: Final = {
    MICROVM: ("microvm,accel=kvm,rtc=on,pit=off,pic=off", "device"),
    Q35: ("q35,accel=kvm", "pci"),
}

# What crosvm-py adds by itself.
_PARAMETERS: Final = "console=ttyS0 panic=-1 root=/dev/vda ro"


class LinuxGuest(NamedTuple):
    """A kernel with virtio built in, its read-only root, perhaps a second disk."""

    kernel: str
    root: str
    memory_mib: int
    data: str | None = None


def linux_command(monitor: str, crosvm: str, guest: LinuxGuest, script: str, end: str) -> list[str]:
    """Return how ``monitor`` boots ``guest`` to run ``script`` and then ``end`` (see its init)."""
    encoded = base64.b64encode(script.encode()).decode()
    parameters = f"quiet crosvm.run={encoded} crosvm.end={end}"
    memory = str(guest.memory_mib)
    if monitor == OURS:
        disks = ["-r", guest.root, *(["--rwdisk", guest.data] if guest.data else [])]
        return [crosvm, "run", "-m", memory, *disks, "-p", parameters, guest.kernel]
    machine, bus = _MACHINES[monitor]
    disks = [
        *("-drive", f"if=none,id=root,format=raw,readonly=on,file={guest.root}"),
        *("-device", f"virtio-blk-{bus},drive=root"),
    ]
    if guest.data:
        disks += [
            *("-drive", f"if=none,id=data,format=raw,aio=io_uring,file={guest.data}"),
            *("-device", f"virtio-blk-{bus},drive=data"),
        ]
    return [
        *QEMU,
        *("-M", machine, "-cpu", "host", "-m", memory, "-kernel", guest.kernel),
        *("-append", f"{_PARAMETERS} {parameters}", *disks, "-device", f"virtio-rng-{bus}"),
    ]


def baremetal_command(monitor: str, crosvm: str, elf: Path, memory_mib: int) -> list[str]:
    """Return how ``monitor`` starts a bare-metal guest; for QEMU it must have a PVH note."""
    if monitor == OURS:
        return [crosvm, "run", "-m", str(memory_mib), str(elf)]
    return [
        *QEMU,
        *("-M", "microvm,accel=kvm,rtc=on,pit=on,pic=on,isa-serial=on"),
        # Without hardware virtualization KVM refuses one of the registers of "host".
        *("-cpu", "host,-arch-capabilities", "-m", str(memory_mib), "-kernel", str(elf)),
    ]
