# SPDX-License-Identifier: BSD-3-Clause
"""A network card on a TAP to be measured, and the monitors that have it.

Nobody listens behind the TAP: the host drops what the guest sends. What the guest is to receive is
in the TAP's queue before it offers a buffer, so that a sender's speed has no part in it.
"""

from __future__ import annotations

import errno
import os
import socket
import struct
import subprocess
import time
from pathlib import Path
from typing import TYPE_CHECKING, Final

from tests.bench.data_disks import MEMORY_MIB, PYTHON, installed
from tests.bench.monitors import MICROVM, baremetal_command
from tests.bench.results import OURS
from tests.bench.watch import WatchError
from tests.guests.baremetal.build import build_guest

if TYPE_CHECKING:
    from typing import Self

# More than the guest asks for, so that none is missing.
MORE: Final = 8
QUEUE_LENGTH: Final = 10_000
PATIENCE_TRIES: Final = 500

SOL_PACKET: Final = 263
PACKET_VNET_HDR: Final = 15
PACKET_QDISC_BYPASS: Final = 20

# struct virtio_net_hdr: nothing, or a checksum that is missing in a TCP segment that is to be cut.
_HEADER: Final = struct.Struct("<BBHHHH")
_PLAIN: Final = _HEADER.pack(0, 0, 0, 0, 0, 0)
_SEGMENT: Final = _HEADER.pack(1, 1, 54, 1448, 34, 16)
_ETHERNET: Final = bytes.fromhex("020000000002020000000001")
SMALL_BYTES: Final = 64


def frame(length: int) -> bytes:
    """Return a frame with the header of a packet socket before it."""
    if length == SMALL_BYTES:
        return _PLAIN + _ETHERNET + b"\x88\xb5" + bytes(length - 14)
    addresses = bytes((10, 0, 0, 1, 10, 0, 0, 2))
    ipv4 = struct.pack(">BBHHHBBH", 0x45, 0, length - 14, 0, 0x4000, 64, 6, 0) + addresses
    tcp = struct.pack(">HHIIBBHHH", 4096, 4097, 1, 1, 0x50, 0x10, 0xFFFF, 0, 0)
    head = _ETHERNET + b"\x08\x00" + ipv4 + tcp
    return _SEGMENT + head + bytes(length - len(head))


def _send(sender: socket.socket, data: bytes) -> None:
    """Send a frame, as soon as the monitor has told the TAP what the guest's driver can take."""
    for _ in range(PATIENCE_TRIES):
        try:
            sender.send(data)
        except OSError as error:
            if error.errno != errno.ENOBUFS:
                raise
            time.sleep(0.01)
        else:
            return
    raise WatchError("the TAP takes no frame")


class Card:
    """A TAP, and command lines by monitor."""

    def __init__(self, directory: Path) -> None:
        self.commands: dict[str, list[str]] = {}
        self._directory = directory
        self._tap = f"bench{os.getpid()}"[:15]

    def __enter__(self) -> Self:
        self._ip("tuntap", "add", "dev", self._tap, "mode", "tap", "vnet_hdr")
        try:
            self._ip("link", "set", self._tap, "txqueuelen", str(QUEUE_LENGTH), "mtu", "1500")
            # The host itself has nothing to say.
            Path(f"/proc/sys/net/ipv6/conf/{self._tap}/disable_ipv6").write_text("1")
            self._ip("link", "set", self._tap, "up")
            for monitor, engine in ((OURS, True), (PYTHON, False)):
                crosvm = installed(self._directory, engine=engine)
                self.commands[monitor] = self._ours(crosvm)
            self.commands[MICROVM] = self._qemu()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._ip("link", "del", self._tap)

    @staticmethod
    def _ip(*words: str) -> None:
        subprocess.run(["ip", *words], check=True, capture_output=True)

    def fill(self, length: int, frames: int) -> None:
        """Put frames into the TAP."""
        data = frame(length)
        with socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as sender:
            sender.setsockopt(SOL_PACKET, PACKET_VNET_HDR, 1)
            sender.setsockopt(SOL_PACKET, PACKET_QDISC_BYPASS, 1)
            sender.bind((self._tap, 0))
            for _ in range(frames + MORE):
                _send(sender, data)

    def _ours(self, crosvm: str) -> list[str]:
        guest = build_guest("frame_speed", self._directory)
        command = baremetal_command(OURS, crosvm, guest, MEMORY_MIB)
        command[2:2] = ["--net", f"tap-name={self._tap}"]
        return command

    def _qemu(self) -> list[str]:
        guest = build_guest("frame_speed", self._directory, pvh=True)
        command = baremetal_command(MICROVM, "", guest, MEMORY_MIB)
        command += ["-name", "guest,debug-threads=on"]
        command += ["-global", "virtio-mmio.force-legacy=false"]
        command += ["-netdev", f"tap,id=n,ifname={self._tap},script=no,downscript=no"]
        return [*command, "-device", "virtio-net-device,netdev=n"]
