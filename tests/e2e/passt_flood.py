# SPDX-License-Identifier: BSD-3-Clause
"""Runs in the test host: a card on passt, whose guest asks for much and for long takes nothing.

The card is the real one. Prints how many frames came, how many of them nobody sent, and how often
the network answered after a flood.
"""

from __future__ import annotations

import json
import random
import struct
import sys
import time
from typing import Final

from crosvm_py.config import NetworkSpec
from crosvm_py.net.passt import start_passt
from devices.virtio.net.ends import EndGoneError
from devices.virtio.net.stream import StreamEnd
from tests.support.net_rig import MAC, PLAIN

ROUNDS: Final = 12
QUESTIONS: Final = 400
SETTLE_SECONDS: Final = 0.3
GATEWAY: Final = bytes([10, 0, 2, 2])
BROADCAST: Final = b"\xff" * 6
KINDS: Final = (b"\x08\x00", b"\x08\x06", b"\x86\xdd")

ARP: Final = (
    BROADCAST
    + MAC
    + struct.pack(">HHHBBH", 0x0806, 1, 0x0800, 6, 4, 1)
    + MAC
    + bytes([10, 0, 2, 15])
    + bytes(6)
    + GATEWAY
)


def checksum(data: bytes) -> int:
    return 0xFFFF - int.from_bytes(data, "big") % 0xFFFF


def dhcp_discover() -> bytes:
    body = struct.pack(">BBBBI", 1, 1, 6, 0, 1234) + bytes(20) + MAC + bytes(10 + 192)
    body += struct.pack(">I", 0x63825363) + bytes([53, 1, 1, 255]) + bytes(60)
    udp = struct.pack(">HHHH", 68, 67, 8 + len(body), 0) + body
    head = struct.pack(">BBHIBBH", 0x45, 0, 20 + len(udp), 0, 64, 17, 0)
    addresses = bytes(4) + b"\xff" * 4
    head = head[:10] + struct.pack(">H", checksum(head + addresses))
    return BROADCAST + MAC + KINDS[0] + head + addresses + udp


class Card:
    """The card, and in the place of its driver this program."""

    def __init__(self) -> None:
        self.end = StreamEnd(start_passt(NetworkSpec("--net", user=True)))
        self.room = memoryview(bytearray(70_000))

    def send(self, data: bytes) -> None:
        while True:
            try:
                self.end.send(PLAIN, [memoryview(data)])
            except BlockingIOError:
                time.sleep(0.001)
            else:
                return

    def take(self) -> list[bytes]:
        """Return every frame that comes until none does for a while."""
        found: list[bytes] = []
        quiet_until = time.monotonic() + SETTLE_SECONDS
        while time.monotonic() < quiet_until:
            try:
                found.append(bytes(self.room[len(PLAIN) : self.end.receive([self.room])]))
            except BlockingIOError:
                if not self.end.commit():
                    time.sleep(0.01)
        return found


def main() -> int:
    choose = random.Random(1)
    card = Card()
    frames = strange = answered = 0
    try:
        for _ in range(ROUNDS):
            for _ in range(QUESTIONS):
                card.send(choose.choice((ARP, dhcp_discover())))
            came = card.take()
            frames += len(came)
            strange += sum(data[12:14] not in KINDS for data in came)
            card.send(ARP)
            answered += any(data[12:14] == KINDS[1] for data in card.take())
    except EndGoneError as error:
        sys.stderr.write(f"{error}\n")
    json.dump({"frames": frames, "strange": strange, "answered": answered}, sys.stdout)
    return 0


if __name__ == "__main__":
    sys.exit(main())
