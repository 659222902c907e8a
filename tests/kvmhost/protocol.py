# SPDX-License-Identifier: BSD-3-Clause
"""What client and agent say on a virtio-serial port. Both sides use this file.

A frame is a kind (one byte), a length (four bytes, big-endian) and that many bytes. A client
begins with HELLO and a nonce, which ends whatever an earlier client left running; the agent
answers with the same HELLO. Then at most one command at a time: RUN, any number of STDIN, EOF and
SIGNAL from the client; STDOUT and STDERR, and last EXIT, from the agent.
"""

from __future__ import annotations

import json
import struct
from enum import IntEnum
from typing import Final, NamedTuple

PORT_PREFIX: Final = "kvmhost."
PORTS: Final = 8
MAX_PAYLOAD_BYTES: Final = 1 << 20
CHUNK_BYTES: Final = 1 << 16
STATUS_NOT_FOUND: Final = 127
STATUS_SIGNAL_BASE: Final = 128

_HEADER: Final = struct.Struct(">BI")
_CLOCK: Final = struct.Struct(">d")
_STATUS: Final = struct.Struct(">i")


class Kind(IntEnum):
    HELLO = 1
    RUN = 2
    STDIN = 3
    EOF = 4
    SIGNAL = 5
    CLOCK = 6
    STDOUT = 7
    STDERR = 8
    EXIT = 9


class FrameError(Exception):
    """The bytes on a port are not frames of this protocol."""


class Frame(NamedTuple):
    kind: Kind
    payload: bytes


class RunRequest(NamedTuple):
    """A command: its words, where, as whom, with which additions to the environment."""

    argv: list[str]
    cwd: str = "/project"
    user: str = "root"
    env: dict[str, str] | None = None

    def encode(self) -> bytes:
        return json.dumps(self._asdict()).encode()

    @classmethod
    def decode(cls, payload: bytes) -> RunRequest:
        return cls(**json.loads(payload))


def encode(kind: Kind, payload: bytes = b"") -> bytes:
    """Return one frame."""
    return _HEADER.pack(kind, len(payload)) + payload


class Decoder:
    """Cut a byte stream into frames."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes) -> list[Frame]:
        """Add bytes and return the frames that are complete now.

        Raises:
            FrameError: unknown kind or impossible length; the buffer is empty afterwards.
        """
        self._buffer += data
        frames: list[Frame] = []
        while len(self._buffer) >= _HEADER.size:
            kind, length = _HEADER.unpack_from(self._buffer)
            if kind not in Kind._value2member_map_ or length > MAX_PAYLOAD_BYTES:
                self._buffer.clear()
                raise FrameError(f"kind {kind}, length {length}")
            end = _HEADER.size + length
            if len(self._buffer) < end:
                break
            frames.append(Frame(Kind(kind), bytes(self._buffer[_HEADER.size : end])))
            del self._buffer[:end]
        return frames


def encode_clock(seconds: float, entropy: bytes) -> bytes:
    """Return the payload of CLOCK: wall clock time, and random bytes for the kernel's pool."""
    return _CLOCK.pack(seconds) + entropy


def decode_clock(payload: bytes) -> tuple[float, bytes]:
    """Undo ``encode_clock``."""
    return _CLOCK.unpack_from(payload)[0], payload[_CLOCK.size :]


def encode_status(status: int) -> bytes:
    """Return the payload of EXIT."""
    return _STATUS.pack(status)


def decode_status(payload: bytes) -> int:
    """Undo ``encode_status``."""
    return int(_STATUS.unpack(payload)[0])
