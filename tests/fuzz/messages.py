# SPDX-License-Identifier: BSD-3-Clause
"""Messages that nearly are what a codec takes, made from what its own checks declare.

So that a message which is added tomorrow is attacked tomorrow: nothing here names one.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, cast

import msgpack

from crosvm_py.control import protocol as control_protocol
from crosvm_py.device_process import protocol as device_protocol
from crosvm_py.file_parser import protocol as file_parser_protocol
from crosvm_py.pool import protocol as pool_protocol
from crosvm_py.pool import spare_protocol
from crosvm_py.requests import catalogue, creation
from crosvm_py.warden import forge_protocol
from crosvm_py.warden import protocol as warden_protocol
from devices.virtio.vsock import broker as vsock_broker
from sys_util import wire
from sys_util.errors import ProtocolError
from sys_util.stranger import unpack_fields
from sys_util.wire import encode
from tests.fuzz.source import EDGES, number, one_in, pick, spoil

if TYPE_CHECKING:
    from sys_util.wire import Check, Codec, Message
    from tests.fuzz.source import Source

CODECS = {
    "device to vmm": device_protocol.VMM_CODEC,
    "vmm to device": device_protocol.DEVICE_CODEC,
    "vmm to warden": warden_protocol.WARDEN_CODEC,
    "warden to vmm": warden_protocol.VMM_CODEC,
    "file parser to vmm": file_parser_protocol.CODEC,
    "warden to forge": forge_protocol.FORGE_CODEC,
    "warden to mould": forge_protocol.MOULD_CODEC,
    "forge to warden": forge_protocol.FROM_FORGE_CODEC,
    "mould to warden": forge_protocol.FROM_MOULD_CODEC,
    "vsock device to broker": vsock_broker.BROKER_CODEC,
    "broker to vsock device": vsock_broker.DEVICE_CODEC,
    "control process to vmm": control_protocol.FROM_CONTROL_CODEC,
    "vmm to control process": control_protocol.CONTROL_CODEC,
    "keeper to vmm": control_protocol.FROM_KEEPER_CODEC,
    "client to monitor": pool_protocol.ORDER_CODEC,
    "pool to monitor": pool_protocol.MONITOR_CODEC,
    "monitor to pool": pool_protocol.POOL_CODEC,
    "pool or monitor to client": pool_protocol.CLIENT_CODEC,
    "monitor to spare warden": spare_protocol.SPARE_CODEC,
    "spare warden to monitor": spare_protocol.MONITOR_CODEC,
    "control request": catalogue.REQUESTS,
    "control response": catalogue.RESPONSES,
    "API to waiting vmm": wire.Codec(creation.INTERNAL),
    "waiting vmm to API": wire.Codec((creation.Booted, creation.KeptFds)),
}

LETTERS = "abc\x00\x1b[2J\n\ud7ff\U0001f600é"


def sample(source: Source, check: Check) -> object:
    """Return a value that ``check`` takes, often at the edge of what it takes."""
    function = cast("Callable[..., object]", check)
    if function is wire.boolean:
        return bool(source.below(2))
    names = function.__code__.co_freevars
    cells = {
        name: cell.cell_contents
        for name, cell in zip(names, function.__closure__ or (), strict=True)
    }
    kind = function.__qualname__.partition(".")[0]
    return _SAMPLERS[kind](source, cells)


def _sample_integer(source: Source, cells: dict[str, object]) -> object:
    low, high = cast("int", cells["low"]), cast("int", cells["high"])
    value = pick(source, (low, high, number(source, 64)))
    return value if low <= value <= high else low + value % (high - low + 1)


def _sample_text(source: Source, cells: dict[str, object]) -> object:
    return pick(source, LETTERS) * _length(source, cast("int", cells["max_chars"]))


def _sample_blob(source: Source, cells: dict[str, object]) -> object:
    return source.data(_length(source, cast("int", cells["max_bytes"])))


def _sample_optional(source: Source, cells: dict[str, object]) -> object:
    return None if one_in(source, 3) else sample(source, cast("Check", cells["item"]))


def _sample_sequence(source: Source, cells: dict[str, object]) -> object:
    item, limit = cast("Check", cells["item"]), cast("int", cells["max_items"])
    return [sample(source, item) for _ in range(min(3, _length(source, limit)))]


def _sample_record(source: Source, cells: dict[str, object]) -> object:
    return [sample(source, field) for field in cast("tuple[Check, ...]", cells["fields"])]


def _sample_nested(source: Source, cells: dict[str, object]) -> object:
    kind = pick(source, message_types(cast("Codec", cells["codec"])))
    return [kind.TYPE, *(sample(source, check) for check in kind.FIELDS)]


def _sample_choice(source: Source, cells: dict[str, object]) -> object:
    return pick(source, cast("tuple[str, ...]", cells["values"]))


_SAMPLERS: dict[str, Callable[[Source, dict[str, object]], object]] = {
    "integer": _sample_integer,
    "text": _sample_text,
    "blob": _sample_blob,
    "optional": _sample_optional,
    "sequence": _sample_sequence,
    "record": _sample_record,
    "nested": _sample_nested,
    "choice": _sample_choice,
}


def _length(source: Source, limit: int) -> int:
    return limit if one_in(source, 40) else min(limit, source.below(20))


def message_types(codec: Codec) -> tuple[type[Message], ...]:
    """Return every message that the codec takes."""
    return tuple(codec._types.values())


def nonsense(source: Source) -> object:
    """Return a value of any kind."""
    kind = source.below(9)
    values: tuple[object, ...] = (
        *(None, True, pick(source, EDGES), -1, -(1 << 63), 1.5, float("nan")),
        *("x" * source.below(50), source.data(source.below(50)), [], {}, [[[[]]]], {"a": 1}),
        *([0] * 200, {1: 2}, {b"k": None}),
    )
    return number(source, 64) if kind == 0 else pick(source, values)


def spoil_fields(source: Source, fields: list[object]) -> None:
    """Change one thing in an array, or in an array inside it."""
    nested = [item for item in fields if isinstance(item, list) and item]
    if nested and one_in(source, 2):
        spoil_fields(source, pick(source, nested))
        return
    kind = source.below(5)
    if kind == 0 and fields:
        del fields[source.below(len(fields))]
    elif kind == 1:
        fields.insert(source.below(len(fields) + 1), nonsense(source))
    elif fields:
        fields[source.below(len(fields))] = nonsense(source)


class MessageFuzzer:
    """Every codec, with messages that are right, nearly right, and not messages at all."""

    def __init__(self) -> None:
        self.mutations = 0
        self.accepted = 0
        self._codecs = [(codec, message_types(codec)) for codec in CODECS.values()]

    def episode(self, source: Source) -> None:
        """Decode one message; only ``ProtocolError`` may come of it."""
        codec, types = pick(source, self._codecs)
        kind = pick(source, types)
        fields: list[object] = [kind.TYPE, *(sample(source, check) for check in kind.FIELDS)]
        self.mutations += 1
        payload = msgpack.packb(fields)
        # A message whose fields are all as long as they may be can be longer than a message may be.
        if one_in(source, 8) and len(payload) <= wire.MAX_MESSAGE_BYTES:
            message = codec.decode(payload)  # not changed: it must be taken, and come back the same
            again = codec.decode(encode(message))
            assert again == message
            self.accepted += 1
            return
        for _ in range(source.below(3)):
            spoil_fields(source, fields)
        payload = msgpack.packb(fields)
        for _ in range(source.below(3)):
            payload = spoil(source, payload)
        try:
            codec.decode(payload)
        except ProtocolError:
            pass
        else:
            self.accepted += 1
        self._unpack(payload[:100])

    def _unpack(self, payload: bytes) -> None:
        """The named fields inside commands and answers."""
        try:
            unpack_fields(payload)
        except ProtocolError:
            return

    def close(self) -> None:
        """Nothing is held."""


def make(_source: Source) -> MessageFuzzer:
    """Build the rig."""
    return MessageFuzzer()
