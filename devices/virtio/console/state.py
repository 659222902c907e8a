# SPDX-License-Identifier: BSD-3-Clause
"""What a restarted console process has to know, and how it checks what was saved.

Of each port: its size, what the driver said of it and has still to be told, where its backlog
ends, and how much of an unfinished chain is in the backlog. Of the device: which control message
was read last, and which one was sent last, or was about to be.
"""

from __future__ import annotations

from devices.virtio.console.backlog import MAX_POSITION
from devices.virtio.console.control import NO_MESSAGE, NOT_HEARD, Event
from sys_util.errors import ProtocolError
from sys_util.stranger import brief
from sys_util.typing import TYPE_CHECKING, Final, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Mapping

_READY: Final = 1
_OPEN: Final = 2
_ADDED: Final = 4

_MAX_SIZE: Final = 0xFFFF
_MAX_INDEX: Final = 0xFFFF
_MAX_EVENTS: Final = (1 << len(Event)) - 1


class PortState(NamedTuple):
    """One port. ``pending`` is a set of bits; ``chain`` is -1 for none."""

    columns: int
    rows: int
    flags: int
    pending: int
    tail: int
    chain: int
    chain_bytes: int
    dropped_bytes: int

    @property
    def is_ready(self) -> bool:
        """Whether the driver has set the port up."""
        return bool(self.flags & _READY)

    @property
    def is_added(self) -> bool:
        """Whether the port exists for the driver."""
        return bool(self.flags & _ADDED) or self.is_ready

    @property
    def is_open(self) -> bool:
        """Whether the driver wants input."""
        return bool(self.flags & _OPEN)

    @property
    def events(self) -> set[Event]:
        """The messages that the driver has still to get."""
        return {event for event in Event if self.pending >> event & 1}


_LEAST: Final = PortState(0, 0, 0, 0, 0, -1, 0, 0)
_MOST: Final = PortState(
    *(_MAX_SIZE, _MAX_SIZE, _READY | _OPEN | _ADDED, _MAX_EVENTS),
    *(MAX_POSITION, _MAX_INDEX, MAX_POSITION, MAX_POSITION),
)


class ConsoleState(NamedTuple):
    """All ports, and the last control messages.

    ``sending``: the place in the queue, port and event of the last one to the driver; ``heard``:
    the place of the last one from the driver.
    """

    ports: tuple[PortState, ...]
    sending: tuple[int, int, int] = NO_MESSAGE
    heard: int = NOT_HEARD

    def pack(self) -> dict[str, object]:
        """Return the fields to store."""
        return self._asdict()


def flags(*, is_ready: bool, is_open: bool, is_added: bool) -> int:
    """Return the flags of a port."""
    return is_ready * _READY | is_open * _OPEN | is_added * _ADDED


def bits(events: set[Event]) -> int:
    """Return a set of events as a number."""
    return sum(1 << event for event in events)


def read_state(fields: Mapping[str, object], port_count: int) -> ConsoleState:
    """Return the state that an earlier process saved, of a console with ``port_count`` ports.

    Raises:
        ProtocolError: no healthy process saves that.
    """
    ports = fields.get("ports")
    if type(ports) is not list or len(ports) != port_count:
        raise ProtocolError(f"not the state of {port_count} ports")
    number, port, event = _integers(
        fields.get("sending"), NO_MESSAGE, (_MAX_INDEX, port_count - 1, len(Event) - 1)
    )
    (heard,) = _integers([fields.get("heard")], (NOT_HEARD,), (_MAX_INDEX,))
    states = tuple(PortState._make(_integers(fields, _LEAST, _MOST)) for fields in ports)
    return ConsoleState(states, (number, port, event), heard)


def _integers(values: object, least: tuple[int, ...], most: tuple[int, ...]) -> list[int]:
    if type(values) is not list or len(values) != len(least):
        raise ProtocolError(f"{brief(values)} instead of {len(least)} numbers")
    for value, low, high in zip(values, least, most, strict=True):
        if type(value) is not int or not low <= value <= high:
            raise ProtocolError(f"{brief(value)} is not in {low}..{high}")
    return values
