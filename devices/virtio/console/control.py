# SPDX-License-Identifier: BSD-3-Clause
"""The control queues of a console with several ports (virtio 1.3 §5.3.6.2).

The messages that the driver has still to get are a set of events for each port, not a list: it does
not grow, however many messages the driver sends and however few buffers it gives.

A message of the driver is saved before its buffer is given back. A message to the driver is saved,
with its place in the queue, before the driver sees it: by this place a restarted process finds out
whether the driver got it.
"""

from __future__ import annotations

from struct import Struct

from sys_util.enum import IntEnum
from sys_util.log import get_logger
from sys_util.typing import TYPE_CHECKING, Final, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from devices.virtio.console.port import Size
    from devices.virtio.context import DeviceContext
    from devices.virtio.queue.chain import DescriptorChain
    from devices.virtio.queue.port import QueuePort

CONTROL_RECEIVE_QUEUE: Final = 2
CONTROL_TRANSMIT_QUEUE: Final = 3

MESSAGES_PER_TURN: Final = 64

# A message is a place in the queue, a port and an event; this stands for no message.
NO_MESSAGE: Final = (-1, 0, 0)

NOT_HEARD: Final = -1

# struct virtio_console_control: id, event, value.
_CONTROL: Final = Struct("<IHH")
_RESIZE: Final = Struct("<HH")

_log = get_logger("devices.virtio.console").limited()


class Event(IntEnum):
    """What a control message says; VIRTIO_CONSOLE_… in the specification."""

    DEVICE_READY = 0
    PORT_ADD = 1
    PORT_REMOVE = 2
    PORT_READY = 3
    CONSOLE_PORT = 4
    RESIZE = 5
    PORT_OPEN = 6
    PORT_NAME = 7


# The messages about one port, in the order in which they are sent: Linux accepts a size only for a
# port that it knows as a console.
_ORDER: Final = (
    Event.PORT_ADD,
    Event.CONSOLE_PORT,
    Event.PORT_NAME,
    Event.RESIZE,
    Event.PORT_OPEN,
)


class ControlledPort(Protocol):
    """What the control queues know of a port."""

    name: str
    is_console: bool
    size: Size

    def open(self) -> None:
        """Let input come: the driver has opened the port."""
        ...

    def close(self) -> None:
        """Let no more input come."""
        ...


class Control:
    """Both control queues."""

    def __init__(
        self,
        context: DeviceContext,
        ports: Sequence[ControlledPort],
        save: Callable[[], None],
    ) -> None:
        """``save`` stores the public attributes of this object."""
        self.with_size = False  # VIRTIO_CONSOLE_F_SIZE was negotiated
        self.pending: list[set[Event]] = [set() for _ in ports]
        self.added: set[int] = set()  # the ports that exist for the driver, or are about to
        self.ready: set[int] = set()
        self.sending = NO_MESSAGE
        self.heard = NOT_HEARD  # the place of the driver's last message
        self.restored = False  # the state of an earlier process was restored
        self._context = context
        self._ports = ports
        self._save = save

    def reset(self) -> None:
        """Forget the driver."""
        self.added.clear()
        self.ready.clear()
        for events in self.pending:
            events.clear()
        self.sending = NO_MESSAGE
        self.heard = NOT_HEARD
        self.restored = False

    def resize(self, port: int) -> None:
        """Save the port's new size, and tell the driver if it knows the port as a console."""
        if port in self.ready and self.with_size and self._ports[port].is_console:
            self.pending[port].add(Event.RESIZE)
        self._save()
        self._send_all()

    # From the driver

    def take(self) -> bool:
        """Read one turn of messages; return whether there are more."""
        port = self._context.port(CONTROL_TRANSMIT_QUEUE)
        if port is None:
            return False
        if port.resumed:
            port.resumed = False
            if not self.restored:
                self._assume_ready()
        else:
            self.heard = NOT_HEARD  # its buffer went back
        for _ in range(MESSAGES_PER_TURN):
            chain = port.take()
            if chain is None:
                if not port.wait():
                    self._send_all()
                    return False
                continue
            if port.last_taken != self.heard:  # else the last process has handled it
                self._read(chain)
                self.heard = port.last_taken
                self._save()
            port.give_back(chain)
            port.publish()
        port.flush()
        self._send_all()
        return True

    def _assume_ready(self) -> None:
        """Go on without the state of the last process: take all ports for set up and open.

        If the driver has closed one of them, its input may be lost, as nobody reads it.
        """
        self.added.update(range(len(self._ports)))
        self.ready.update(range(len(self._ports)))
        for port in self._ports:
            port.open()

    def _read(self, chain: DescriptorChain) -> None:
        reader = chain.reader
        if reader.remaining < _CONTROL.size:
            _log.warning("console: control message of %d bytes", reader.remaining)
            return
        port, event, value = reader.unpack(_CONTROL)
        if event == Event.DEVICE_READY:
            self._device_ready(value)
        elif port >= len(self._ports):
            _log.warning("console: control message %d for port %d, which is not", event, port)
        elif event == Event.PORT_READY:
            self._port_ready(port, value)
        elif event == Event.PORT_OPEN:
            (self._ports[port].open if value else self._ports[port].close)()
        else:
            _log.warning("console: control message %d, which no driver sends", event)

    def _device_ready(self, value: int) -> None:
        if value != 1:
            _log.warning("console: the driver could not set the device up")
            return
        for number, events in enumerate(self.pending):
            if number not in self.added:  # a port that exists is not added again (§5.3.6.2.1)
                self.added.add(number)
                events.add(Event.PORT_ADD)

    def _port_ready(self, port: int, value: int) -> None:
        if value != 1:
            _log.warning("console: the driver could not set port %d up", port)
            return
        self.ready.add(port)
        events = self.pending[port]
        events.add(Event.PORT_OPEN)
        if self._ports[port].is_console:
            events.add(Event.CONSOLE_PORT)
            if self.with_size and any(self._ports[port].size):
                events.add(Event.RESIZE)
        if self._ports[port].name:
            events.add(Event.PORT_NAME)

    # To the driver

    def send(self) -> bool:
        """Send pending messages, as far as there are buffers; return whether to go on."""
        port = self._context.port(CONTROL_RECEIVE_QUEUE)
        if port is None:
            return False
        if port.resumed:
            port.resumed = False
            self._settle(port)
        for _ in range(MESSAGES_PER_TURN):
            message = self._next()
            if message is None:
                port.flush()  # other buffers stay in the queue, and no kick is wanted
                return False
            chain = port.take()
            if chain is None:
                if not port.wait():
                    return False
                continue
            number, event = message
            data = self._message(number, event)
            if chain.writer.remaining < len(data):
                _log.warning("console: buffer of %d bytes for control", chain.writer.remaining)
            else:
                chain.writer.write(data)
                self.pending[number].discard(event)
                self.sending = (port.last_taken, number, event)
                self._save()
            port.give_back(chain)
            port.publish()
        port.flush()
        return True

    def _settle(self, port: QueuePort) -> None:
        """Send the last message of the last process again, if the driver did not see it."""
        at, number, event = self.sending
        self.sending = NO_MESSAGE
        unshown = (at - port.last_taken - 1) & 0xFFFF  # nothing is taken of this queue yet
        if at >= 0 and unshown < port.size:
            self.pending[number].add(Event(event))
            self._save()

    def _send_all(self) -> None:
        if self.send():
            self._context.call_later(0.0, self._send_all)

    def _next(self) -> tuple[int, Event] | None:
        for number, events in enumerate(self.pending):
            for event in _ORDER if events else ():
                if event in events:
                    return number, event
        return None

    def _message(self, number: int, event: Event) -> bytes:
        port = self._ports[number]
        data = _CONTROL.pack(number, event, 1)
        if event == Event.PORT_NAME:
            data += port.name.encode()
        elif event == Event.RESIZE:
            data += _RESIZE.pack(port.size.columns, port.size.rows)
        return data
