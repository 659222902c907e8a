# SPDX-License-Identifier: BSD-3-Clause
"""Attempts with ioctl: known requests and sweeps of numbers, on every descriptor there is."""

from __future__ import annotations

import errno
from functools import partial
from typing import TYPE_CHECKING, Final

from seccomp.syscalls import get_constants, machine_arch
from tests.breakout.attempt import Attempt, any_of, every, refuse
from tests.breakout.hands import call, sweep_ioctls

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.breakout.attempt import Cell

GROUP: Final = "ioctl"

# What the policies' table of constants lacks: <linux/sockios.h>, <scsi/sg.h>, <linux/loop.h> …
_MORE: Final = {
    "SIOCSPGRP": 0x8902,
    "SIOCADDRT": 0x890B,
    "SIOCGIFCONF": 0x8912,
    "SIOCGIFFLAGS": 0x8913,
    "SIOCSIFFLAGS": 0x8914,
    "SIOCGIFADDR": 0x8915,
    "SIOCSIFADDR": 0x8916,
    "SIOCSIFNETMASK": 0x891C,
    "SIOCSIFMTU": 0x8922,
    "SIOCSIFHWADDR": 0x8924,
    "SIOCGIFINDEX": 0x8933,
    "SIOCETHTOOL": 0x8946,
    "SIOCGSKNS": 0x894C,
    "SIOCBRADDBR": 0x89A0,
    "SG_IO": 0x2285,
    "CDROMEJECT": 0x5309,
    "LOOP_SET_FD": 0x4C00,
    "LOOP_CTL_GET_FREE": 0x4C82,
    "DM_DEV_CREATE": 0xC138FD03,
    "FS_IOC_FIEMAP": 0xC020660B,
    "FS_IOC_ENABLE_VERITY": 0x40806685,
    "PERF_EVENT_IOC_ENABLE": 0x2400,
    "PERF_EVENT_IOC_SET_BPF": 0x40042408,
    "NS_GET_USERNS": 0xB701,
    "NS_GET_PARENT": 0xB702,
}
_CONSTANTS: Final = get_constants(machine_arch()) | _MORE

_REQUESTS: Final = {
    "push input into a terminal": "TIOCSTI",
    "change a line discipline": "TIOCSETD",
    "take a terminal": "TIOCSCTTY TIOCNOTTY TIOCEXCL",
    "take the console": "TIOCCONS TIOCLINUX",
    "hang a terminal up": "TIOCVHANGUP",
    "set a terminal": "TCSETS TCSETSW TCSETSF TCSBRK TIOCSWINSZ",
    "ask a terminal": "TCGETS TIOCGSID TIOCGPGRP TIOCGWINSZ TIOCGPTN",
    "open a terminal's other side": "TIOCGPTPEER",
    "change a descriptor": "FIONBIO FIOASYNC FIOCLEX FIONCLEX",
    "take signals": "FIOSETOWN SIOCSPGRP",
    "ask how many bytes wait": "FIONREAD TIOCOUTQ",
    "set interfaces": "SIOCSIFFLAGS SIOCSIFADDR SIOCSIFNETMASK SIOCSIFMTU SIOCSIFHWADDR SIOCETHTOOL"
    " SIOCADDRT SIOCBRADDBR",
    "ask for interfaces": "SIOCGIFCONF SIOCGIFFLAGS SIOCGIFADDR SIOCGIFINDEX",
    "take a network namespace": "SIOCGSKNS TUNGETDEVNETNS NS_GET_USERNS NS_GET_PARENT",
    "change a TAP": "TUNSETIFF TUNSETPERSIST TUNSETOWNER TUNSETGROUP TUNSETLINK TUNSETTXFILTER"
    " TUNATTACHFILTER TUNGETIFF TUNSETSNDBUF TUNSETVNETHDRSZ TUNSETVNETLE TUNSETVNETBE"
    " TUNSETSTEERINGEBPF TUNSETCARRIER",
    "change whose vhost it is": "VHOST_SET_OWNER VHOST_RESET_OWNER VHOST_SET_MEM_TABLE"
    " VHOST_SET_LOG_BASE VHOST_SET_LOG_FD VHOST_SET_BACKEND_FEATURES",
    "claim another vsock address": "VHOST_VSOCK_SET_GUEST_CID",
    "make a VM": "KVM_CREATE_VM KVM_CREATE_VCPU KVM_CREATE_IRQCHIP",
    "change a VM": "KVM_SET_USER_MEMORY_REGION KVM_IRQFD KVM_IOEVENTFD KVM_RUN KVM_IRQ_LINE"
    " KVM_SIGNAL_MSI KVM_SET_REGS",
    "change a block device": "BLKDISCARD BLKSECDISCARD BLKZEROOUT BLKRRPART BLKFLSBUF BLKROSET"
    " BLKBSZSET",
    "send a SCSI command": "SG_IO CDROMEJECT",
    "change a file system": "FITRIM FIFREEZE FITHAW FS_IOC_SETFLAGS FS_IOC_FSSETXATTR"
    " FS_IOC_ENABLE_VERITY",
    "share blocks with a file": "FICLONE FICLONERANGE FIDEDUPERANGE",
    "find a file's blocks": "FIBMAP FIGETBSZ FS_IOC_FIEMAP",
    "make other devices": "DM_DEV_CREATE LOOP_CTL_GET_FREE LOOP_SET_FD",
    "use performance events": "PERF_EVENT_IOC_ENABLE PERF_EVENT_IOC_SET_BPF",
    "serve page faults": "UFFDIO_API",
}

# _IOC of <asm-generic/ioctl.h>: number and type, size, direction. The types of terminals, block,
# SCSI and loop devices, file systems, KVM, vhost, TUN, sockets, DRM, input, VFIO and others.
_TYPES: Final = (0x00, 0x03, 0x12, 0x22, 0x24, 0x3B, 0x45, 0x4C, 0x54, 0x58, 0x64, 0x66, 0x89, 0x94)
_MORE_TYPES: Final = (0xAA, 0xAE, 0xAF, 0xB7, 0xFD)
_SIZES: Final = (4, 8, 16, 40, 64)
_DIRECTIONS: Final = {"write": 1 << 30, "read": 2 << 30, "both": 3 << 30}


def requests(names: str) -> Callable[[Cell], object]:
    numbers = [_CONSTANTS[name] for name in names.split()]

    def act(cell: Cell) -> None:
        argument = bytearray(512)
        asked = [number for number in numbers if number not in cell.allowed_ioctls]
        if not asked:
            raise refuse("ioctl", errno.ENOTTY)
        any_of(
            [partial(call, "ioctl", fd, number, argument) for fd in every(cell) for number in asked]
        )

    return act


def sweep(cell: Cell, first: int, count: int) -> None:
    """Try many numbers on one descriptor; whatever reaches the kernel at all is too much."""
    fd = cell.files[0] if cell.files else cell.channel
    step = cell.sweep_step
    if sweep_ioctls(fd, first, count // step, step, cell.allowed_ioctls) is None:
        raise refuse("ioctl", 0)


def with_direction(direction: int) -> Callable[[Cell], object]:
    def act(cell: Cell) -> None:
        firsts = [
            direction | size << 16 | kind << 8 for kind in _TYPES + _MORE_TYPES for size in _SIZES
        ]
        any_of([partial(sweep, cell, first, 256) for first in firsts])

    return act


def beyond_32_bits(cell: Cell) -> None:
    """The kernel looks at 32 bits of a request: the filter must see the same number as it."""
    numbers = [_CONSTANTS["TIOCSTI"], _CONSTANTS["FIONBIO"], *cell.allowed_ioctls]
    any_of([partial(call, "ioctl", cell.channel, number | 1 << 32, 0) for number in numbers])


ATTEMPTS: Final = (
    *(Attempt(GROUP, name, requests(names)) for name, names in _REQUESTS.items()),
    Attempt(GROUP, "every number without a size", lambda cell: sweep(cell, 0, 0x10000)),
    *(
        Attempt(GROUP, f"every number of 19 types with a size, {name}", with_direction(bits))
        for name, bits in _DIRECTIONS.items()
    ),
    Attempt(GROUP, "requests of more than 32 bits", beyond_32_bits),
)
