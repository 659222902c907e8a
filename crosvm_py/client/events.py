# SPDX-License-Identifier: BSD-3-Clause
"""Read the events that ``--event-monitor`` writes into a file."""

from __future__ import annotations

import time

from crosvm_py.vm_config import json_text
from crosvm_py.vm_config.errors import SchemaError
from sys_util.typing import TYPE_CHECKING, Final, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

# What is longer is no event.
MAX_RECORD_BYTES: Final = 1 << 20

_PIECE_BYTES: Final = 64 * 1024
_POLL_SECONDS: Final = 0.05
_END: Final = b"\n\n"


class Event(NamedTuple):
    """What happened, ``seconds`` after the start of the monitor."""

    seconds: float
    source: str
    event: str
    properties: Mapping[str, str]


def read_events(path: str, has_ended: Callable[[], bool]) -> Iterator[Event]:
    """Yield the events in a file, and those that come until the program ``has_ended``.

    Raises:
        OSError: the file cannot be read.
    """
    data = b""
    with open(path, "rb") as file:
        while True:
            ended = has_ended()  # before the last look
            piece = file.read(_PIECE_BYTES)
            *records, data = (data + piece).split(_END)
            if len(data) > MAX_RECORD_BYTES:
                data = b""
            for record in records:
                event = _parse(record)
                if event is not None:
                    yield event
            if not piece:
                if ended:
                    return
                time.sleep(_POLL_SECONDS)


def _parse(record: bytes) -> Event | None:
    """Return one event, or ``None`` if it is damaged: the monitor loses what is not read."""
    try:
        match json_text.parse(record):
            case {
                "timestamp": {"secs": int() as secs, "nanos": int() as nanos},
                "source": str() as source,
                "event": str() as event,
                "properties": None | dict() as properties,
            }:
                texts = {str(name): str(text) for name, text in (properties or {}).items()}
                return Event(secs + nanos / 1e9, source, event, texts)
    except SchemaError:
        pass
    return None
