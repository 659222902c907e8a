# SPDX-License-Identifier: BSD-3-Clause
"""What a device that was taken over says to the vmm: every message type, wrong in every way.

The first lie ends the device; the vmm, the warden and the other devices go on.
"""

from __future__ import annotations

import errno
import socket
import struct
from typing import TYPE_CHECKING, Final, NamedTuple, cast

import msgpack

from crosvm_py.device_process import protocol
from devices.virtio.backend import QueuePosition, RingPosition
from devices.virtio.commands import Obeyed, SetSize
from sys_util import child_log, wire
from sys_util.stranger import unpack
from tests.breakout.hands import Refused, address, call

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from sys_util.wire import Message

GROUP: Final = "lies to the vmm"

SCM_MAX_FD: Final = 253
_FLAGS: Final = socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL
_NEVER_ASKED: Final = 0xFFFF_FFF0
_TOLD: Final = 200  # what answers the command by which a lie is asked for
# What the vmm takes from a device in one turn, and a socket's buffer holds, many times over.
_MOST_BYTES: Final = wire.MAX_MESSAGE_BYTES

# One of each type as a device would say it, but for ids, which nobody asked for.
SAMPLES: Final[tuple[Message, ...]] = (
    protocol.Ready(2, 1 << 32, (256,), bytes(8)),
    protocol.Done(_NEVER_ASKED),
    protocol.QueueFailed(0, "no reason"),
    protocol.ConfigChanged(b""),
    child_log.LogLine(3, "breakout", "a line"),
    child_log.CallDenied(1),
    child_log.Crashed("no reason"),
    protocol.Answer(_NEVER_ASKED, Obeyed()),
    protocol.Description(
        _NEVER_ASKED,
        ("paused",),
        None,
        (QueuePosition(0, "device", RingPosition(0, 0, 0, 0, 0, True), False),),
    ),
    protocol.ChangeBlocks(1, 0, 1),
)

_QUEUE: Final = [0, "device", None, False]
_WRONG_QUEUE: Final = [0, "device", [1 << 16, 0, 0, 0, 0, True], False]
_LATER: Final = ("Done", "QueueFailed", "ConfigChanged", "Answer", "Description")


class Said(NamedTuple):
    """One datagram on the channel, with how many descriptors."""

    payload: bytes
    fds: int = 0


class Lie(NamedTuple):
    """One row: what is said, given the id of the command that asks for it.

    ``ends``: the vmm ends the device for it. What it does not end it bounds. ``early``: it is said
    before the device was ready.
    """

    name: str
    say: Callable[[int], Sequence[Said]]
    ends: bool = True
    repeated: bool = False
    early: bool = False


def _packed(fields: object) -> bytes:
    return bytes(msgpack.packb(fields))


def _fields(message: Message) -> list[object]:
    return cast("list[object]", unpack(wire.encode(message)))


def _says(name: str, payload: bytes, fds: int = 0) -> Lie:
    return Lie(name, lambda _id: [Said(payload, fds)])


def _of_each_type() -> list[Lie]:
    lies = []
    for sample in SAMPLES:
        name = type(sample).__name__
        fields = _fields(sample)
        others = [
            [fields[0], *fields[1:at], 1.5, *fields[at + 1 :]] for at in range(1, len(fields))
        ]
        lies += [
            _says(f"{name} without its last field", _packed(fields[:-1])),
            _says(f"{name} with a field more", _packed([*fields, 0])),
            _says(f"{name} cut off", wire.encode(sample)[:-1]),
            _says(f"{name} with a descriptor", wire.encode(sample), fds=1),
            *(
                _says(f"{name} with another type of field {at}", _packed(other))
                for at, other in enumerate(others, 1)
            ),
        ]
    return lies


def _out_of_range() -> list[Lie]:
    large = "x" * 60_000
    return [
        _says("Ready for too many queues", _packed([32, 2, 0, [1] * 65, b"", False])),
        _says("Ready with a queue of -1", _packed([32, 2, 0, [-1], b"", False])),
        _says("Ready with features of 2^64", b"\x96\x20\x02\xcb" + bytes(8) + b"\x90\xc4\x00\xc2"),
        _says("Ready with too large a configuration", _packed([32, 2, 0, [], bytes(4097), False])),
        _says("Done with an id of -1", _packed([33, -1])),
        _says("Done with an id of 2^32", _packed([33, 1 << 32])),
        _says("QueueFailed for queue 65,536", _packed([34, 1 << 16, ""])),
        _says("QueueFailed with too long a reason", _packed([34, 0, large])),
        _says("ConfigChanged to too large a one", _packed([35, bytes(60_000), False, 1])),
        _says("LogLine with too long a line", _packed([36, 3, "breakout", large])),
        _says("LogLine from too long a module", _packed([36, 3, large, ""])),
        _says("CallDenied of call 2^32", _packed([37, 1 << 32])),
        _says("Crashed with too long a report", _packed([38, large])),
        _says("Description of too many queues", _packed([40, 1, [], None, [_QUEUE] * 65])),
        _says("Description of a queue at 65,536", _packed([40, 1, [], None, [_WRONG_QUEUE]])),
        _says("Description held for 5 reasons", _packed([40, 1, ["x"] * 5, None, []])),
        _says("Answer with too long a result", _packed([39, 1, [65, large]])),
    ]


def _out_of_order() -> list[Lie]:
    def twice(request_id: int) -> list[Said]:
        answer = _packed([39, request_id, [_TOLD, ""]])
        return [Said(answer), Said(answer)]

    def answer(*fields: object) -> Callable[[int], list[Said]]:
        return lambda request_id: [Said(_packed([39, request_id, *fields]))]

    def raw(result: bytes) -> Callable[[int], list[Said]]:
        return lambda request_id: [Said(b"\x93\x27" + _packed(request_id) + result)]

    return [
        _says("Ready a second time", wire.encode(SAMPLES[0])),
        _says("Done with what was never asked", wire.encode(protocol.Done(_NEVER_ASKED))),
        _says("Done with request 0", wire.encode(protocol.Done(0))),
        Lie("Done with a command", lambda request: [Said(wire.encode(protocol.Done(request)))]),
        _says("Answer to what was never asked", wire.encode(SAMPLES[-2])),
        _says("Description that was never asked", wire.encode(SAMPLES[-1])),
        Lie(
            "Description for a command",
            lambda request: [Said(_packed([40, request, [], None, []]))],
        ),
        Lie("Answer twice", twice),
        Lie("Answer of another command", answer([64])),
        Lie("Answer that is not msgpack", raw(b"\xc1")),
        Lie("Answer without a type", answer([])),
        Lie("Answer of an unknown type", answer([99])),
        Lie("Answer with a map for a message", answer({1: 2})),
        Lie("Answer nested 1,000 deep", raw(b"\x91" * 999 + b"\x01")),
        Lie("Answer nested 4,000 deep", raw(b"\x91" * 4000 + b"\x01")),
        Lie("Answer that refuses without a reason", answer([65])),
        Lie("Answer that refuses with a nested reason", answer([65, [[None]]])),
        Lie("Answer that claims 2^32 entries", raw(b"\xdf\xff\xff\xff\xff")),
        _says("QueueFailed for a queue that it does not have", _packed([34, 0xFFFF, ""])),
        _says("ConfigChanged to another size", wire.encode(protocol.ConfigChanged(bytes(4096)))),
    ]


def _too_early() -> list[Lie]:
    answers = (sample for sample in SAMPLES if type(sample).__name__ in _LATER)
    return [
        Lie(
            f"{type(answer).__name__} before Ready",
            lambda _id, answer=answer: [Said(wire.encode(answer))],  # type: ignore[misc]  # a default binds the loop's variable
            early=True,
        )
        for answer in answers
    ]


def _no_message() -> list[Lie]:
    own: Sequence[Message] = (
        protocol.Activate(1, 1 << 32, ()),
        protocol.Reset(1),
        protocol.Pause(1),
        protocol.Order(1, SetSize(512)),
    )
    return [
        _says("nothing but a descriptor", b"", fds=1),
        _says("garbage", b"\xc1\xff\x00"),
        _says("a number", b"\x01"),
        _says("an empty array", b"\x90"),
        _says("a map", b"\x81\xa1a\x02"),
        _says("a type that is true", b"\x92\xc3\x01"),
        _says("a type that is text", _packed(["Ready", 2])),
        _says("an unknown type", _packed([200, 1])),
        _says("a type of -1", _packed([-1, 1])),
        _says("an array that claims 2^32 fields", b"\xdd\xff\xff\xff\xff\x21"),
        _says("a string that claims 2^32 bytes", b"\x92\x26\xdb\xff\xff\xff\xff"),
        _says("an extension type", b"\x92\x21\xc7\x08\x05" + bytes(8)),
        _says("a field nested 1,000 deep", b"\x93\x23" + b"\x91" * 1000 + b"\xc0\xc2"),
        _says("arrays nested 60,000 deep", b"\x91" * 60_000 + b"\x01"),
        _says("two messages in one", wire.encode(SAMPLES[4]) * 2),
        _says("a message of more than 64 KiB", _packed([36, 3, "", "x" * (_MOST_BYTES + 8)])),
        _says("a message with 253 descriptors", wire.encode(SAMPLES[4]), fds=SCM_MAX_FD),
        *(_says(f"the vmm's own {type(one).__name__}", wire.encode(one)) for one in own),
    ]


def _bounded() -> list[Lie]:
    """Each of these may be said; what is tried is to drown the vmm, or to deceive who reads."""
    escape = "\x1b[2J\x1b]0;owned\x07\nrng: all is well\r\u202e"
    samples: Sequence[tuple[str, Message]] = (
        ("log lines", child_log.LogLine(1, "breakout", "x" * 4000)),
        ("failed queues", protocol.QueueFailed(0, "x" * 500)),
        ("denied calls", child_log.CallDenied(0)),
        ("reports of crashes", child_log.Crashed("x" * 8000)),
    )
    return [
        *(
            Lie(
                f"very many {name}",
                lambda _id, message=message: [Said(wire.encode(message))],  # type: ignore[misc]  # a default binds the loop's variable
                ends=False,
                repeated=True,
            )
            for name, message in samples
        ),
        Lie(
            "log lines that move the cursor",
            lambda _id: [Said(wire.encode(child_log.LogLine(1, "breakout\n", escape)))],
            ends=False,
        ),
    ]


LIES: Final = (
    *_of_each_type(),
    *_out_of_range(),
    *_out_of_order(),
    *_too_early(),
    *_no_message(),
    *_bounded(),
)


def send(channel: int, said: Said) -> bool:
    """Send one datagram; return whether there was room for it."""
    try:
        if said.fds:
            send_with_fds(channel, said)
        else:
            call("sendto", channel, said.payload, len(said.payload), _FLAGS, 0, 0)
    except Refused as refused:
        if refused.error in (errno.EAGAIN, errno.ENOBUFS):
            return False
        raise
    return True


def send_with_fds(channel: int, said: Said) -> None:
    """Send one datagram with its descriptors."""
    fds = struct.pack(f"{said.fds}i", *[0] * said.fds)
    control = bytearray(struct.pack("Qii", 16 + len(fds), socket.SOL_SOCKET, socket.SCM_RIGHTS))
    control += fds + bytes(-len(fds) % 8)
    vector = struct.pack("QQ", address(said.payload), len(said.payload))
    header = (0, 0, address(vector), 1, address(control), len(control), 0)
    call("sendmsg", channel, struct.pack("QIxxxxQQQQIxxxx", *header), _FLAGS)


def tell(lie: Lie, channel: int, request_id: int, times: int) -> None:
    """Say what is to be said; whoever does not read it yet is waited for.

    Raises:
        Refused: it cannot be said, or the channel was closed meanwhile.
    """
    for said in lie.say(request_id):
        left = times if lie.repeated else 1
        while left:
            left -= send(channel, said)
