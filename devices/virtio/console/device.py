# SPDX-License-Identifier: BSD-3-Clause
"""virtio-console: terminals and byte channels (virtio 1.3 §5.3).

Queues:      0 receiveq and 1 transmitq of port 0; with several ports 2 and 3 for control, and
             2n + 2 and 2n + 3 for port n
Features:    SIZE where a port has a terminal, MULTIPORT for more than one port or one with a name,
             EMERG_WRITE
Config:      size of port 0, number of ports, emergency write
Kept fds:    of each port what it writes to, and what it reads from; memory for backlogs

Since 6.15 (5326ab737a47, also in Debian's 6.1) Linux reads the columns and rows of a RESIZE message
in the order of the specification, before that in the reverse order. A single port without a name
needs no such message: its size is in the configuration, where every kernel finds it.
"""

from __future__ import annotations

from functools import partial
from struct import Struct

from devices.virtio.commands import Drain, Obeyed, SetWindow, Waiting
from devices.virtio.console.backlog import open_backlogs
from devices.virtio.console.control import (
    CONTROL_RECEIVE_QUEUE,
    CONTROL_TRANSMIT_QUEUE,
    Control,
)
from devices.virtio.console.output import LineOutput, Output, PolledOutput, SocketOutput
from devices.virtio.console.port import ConsolePort, Input, Size
from devices.virtio.console.state import ConsoleState, PortState, bits, flags, read_state
from devices.virtio.device import CommandError, SimpleDevice
from devices.virtio.queue.servers import PortServer
from sys_util.facts import fact
from sys_util.typing import TYPE_CHECKING, ClassVar, Final, NamedTuple
from sys_util.wire import U16, U32, blob, boolean, record, sequence, text

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from devices.virtio.commands import Command
    from devices.virtio.console.backlog import Backlog
    from devices.virtio.context import DeviceContext
    from devices.virtio.queue.servers import QueueServer, StartedQueue
    from sys_util.wire import Check, Message

VIRTIO_CONSOLE_F_SIZE: Final = 0
VIRTIO_CONSOLE_F_MULTIPORT: Final = 1
VIRTIO_CONSOLE_F_EMERG_WRITE: Final = 2

# Linux fills receiveqs with pages, so a larger queue would cost more memory of the guest.
DATA_QUEUE_SIZE: Final = 64
CONTROL_QUEUE_SIZE: Final = 32

# hvc0 to hvc15 is what Linux has (MAX_NR_HVC_CONSOLES).
MAX_PORTS: Final = 16

# struct virtio_console_config: cols, rows, max_nr_ports, emerg_wr.
_CONFIG: Final = Struct("<HHII")
_EMERG_WR_OFFSET: Final = 8


class PortSpec(NamedTuple):
    """One port: what the guest sees, and what its descriptors are.

    ``output`` is none, stream, socket, lines or polled (at most ``write_limit`` bytes at a time);
    ``input`` none, stream or regular. ``prefix`` goes before each line.
    """

    name: str
    is_console: bool
    output: str
    input: str
    columns: int = 0
    rows: int = 0
    has_size: bool = False
    write_limit: int = 1
    prefix: bytes = b""


_PORT: Final = record(
    PortSpec,
    text(64),
    boolean,
    text(16),
    text(16),
    U16,
    U16,
    boolean,
    U32,
    blob(4096),
)


@fact
class ConsoleSpec:
    """The device: its ports, the first of which is port 0."""

    TYPE: ClassVar[int] = 3
    FIELDS: ClassVar[tuple[Check, ...]] = (sequence(_PORT, MAX_PORTS), boolean)
    ports: tuple[PortSpec, ...]
    has_backlogs: bool = False  # the last descriptor is memory for the backlogs of all ports


class _Port(ConsolePort):
    """A port with what the driver is told of it."""

    def __init__(
        self,
        number: int,
        spec: PortSpec,
        context: DeviceContext,
        fds: Iterator[int],
        backlog: Backlog,
    ) -> None:
        label = f"port {number}"
        first = _first_queue(number)
        output = _build_output(label, spec, fds, backlog)
        source = None
        if spec.input != "none":
            source = Input(next(fds), regular=spec.input == "regular")
        super().__init__(label, context, (first, first + 1), backlog, output, source)
        self.name = spec.name
        self.is_console = spec.is_console
        self.size = Size(spec.columns, spec.rows)


def _first_queue(port: int) -> int:
    return 2 * port + 2 if port else 0


def _build_output(
    label: str, spec: PortSpec, fds: Iterator[int], backlog: Backlog
) -> Output | None:
    lossy = spec.is_console
    match spec.output:
        case "none":
            return None
        case "socket":
            return SocketOutput(label, next(fds), backlog, lossy=lossy)
        case "lines":
            return LineOutput(label, next(fds), backlog, spec.prefix)
        case "polled":
            return PolledOutput(label, next(fds), backlog, spec.write_limit, lossy=lossy)
        case _:
            return Output(label, next(fds), backlog, lossy=lossy)


class Console(SimpleDevice):
    """Terminals and byte channels. Owns the descriptors, which are all non-blocking."""

    name: ClassVar[str] = "console"
    device_type: ClassVar[int] = 3
    seccomp_policy: ClassVar[str] = "console_device"
    early_writes: ClassVar[bool] = True  # the emergency write (§5.3.4)
    in_order: ClassVar[bool] = True

    def __init__(self, spec: ConsoleSpec, fds: Sequence[int]) -> None:
        self._specs = tuple(map(PortSpec._make, spec.ports))  # plain tuples, when unpacked
        *ports_fds, backlogs_fd = fds if spec.has_backlogs else (*fds, -1)
        self._fds = tuple(ports_fds)
        self._backlogs = open_backlogs(backlogs_fd, len(self._specs))
        self._ports: list[_Port] = []
        self._has_size = any(port.has_size for port in self._specs)
        self._is_multiport = len(self._specs) > 1 or bool(self._specs[0].name)
        self.queue_sizes = self._queue_sizes()
        self._by_queue: dict[int, _Port] = {}
        self._negotiated_multiport = False
        self._context: DeviceContext | None = None
        self._control: Control | None = None

    def features(self) -> int:
        return (
            int(self._has_size) << VIRTIO_CONSOLE_F_SIZE
            | int(self._is_multiport) << VIRTIO_CONSOLE_F_MULTIPORT
            | 1 << VIRTIO_CONSOLE_F_EMERG_WRITE
        )

    def config(self) -> bytes:
        size = self._ports[0].size if self._ports else Size(0, 0)
        return _CONFIG.pack(size.columns, size.rows, len(self._specs), 0)

    def write_config(self, offset: int, data: bytes) -> None:
        if offset == _EMERG_WR_OFFSET and data:
            self._ports[0].write_now(data[:1])

    def attach(self, context: DeviceContext) -> None:
        self._context = context
        fds = iter(self._fds)
        self._ports = [
            _Port(number, spec, context, fds, self._backlogs[number])
            for number, spec in enumerate(self._specs)
        ]
        for number, port in enumerate(self._ports):
            first = _first_queue(number)
            self._by_queue[first] = self._by_queue[first + 1] = port
            port.save = self._save
        self._control = Control(context, self._ports, self._save)
        if not context.saved.restore(partial(self._restore, self._control)):
            self._clear_backlogs()
        self._save()

    def activate(self, features: int) -> None:
        self._negotiated_multiport = bool(features >> VIRTIO_CONSOLE_F_MULTIPORT & 1)
        if self._control is not None:
            self._control.with_size = bool(features >> VIRTIO_CONSOLE_F_SIZE & 1)
        if self._negotiated_multiport:
            return
        self._ports[0].open()
        if features >> VIRTIO_CONSOLE_F_SIZE & 1 and self._context is not None:
            # Linux reads the size only after a configuration change interrupt.
            self._context.config_changed()

    def make_server(self, queue: StartedQueue) -> QueueServer:
        return PortServer(queue, self._serve)

    def _serve(self, index: int) -> bool:
        if index in (CONTROL_RECEIVE_QUEUE, CONTROL_TRANSMIT_QUEUE):
            control = self._control
            if control is None or not self._negotiated_multiport:
                return False
            return control.send() if index == CONTROL_RECEIVE_QUEUE else control.take()
        port = self._by_queue[index]
        if port is not self._ports[0] and not self._negotiated_multiport:
            return False
        return port.transmit() if index & 1 else port.receive()

    def reset(self) -> None:
        self._negotiated_multiport = False
        for port in self._ports:
            port.reset()
        if self._control is not None:
            self._control.reset()
        self._save()

    def command(self, command: Command) -> Message:
        match command:
            case Drain():
                return Waiting(sum(port.drain() for port in self._ports))
            case SetWindow(number, columns, rows):
                if number >= len(self._ports):
                    raise CommandError(f"port {number}: there are {len(self._ports)}")
                self._resize(number, Size(columns, rows))
                return Obeyed()
        return super().command(command)

    def close(self) -> None:
        """Close every descriptor; a device process needs no call, as its end closes them."""
        ports, self._ports = self._ports, []
        for port in ports:
            port.close_ends()

    def _save(self) -> None:
        """Store what a restarted process has to know."""
        if self._context is not None and self._control is not None:
            states = tuple(map(self._port_state, range(len(self._ports))))
            state = ConsoleState(states, self._control.sending, self._control.heard)
            self._context.saved.store(state.pack())

    def _port_state(self, number: int) -> PortState:
        port, backlog, control = self._ports[number], self._backlogs[number], self._control
        is_added, is_ready, pending = False, False, 0
        if control is not None:
            is_added, is_ready = number in control.added, number in control.ready
            pending = bits(control.pending[number])
        return PortState(
            *port.size,
            flags(is_ready=is_ready, is_open=port.is_open, is_added=is_added),
            pending,
            backlog.tail,
            port.chain,
            port.chain_bytes,
            0 if port.output is None else port.output.dropped_bytes,
        )

    def _restore(self, control: Control, fields: dict[str, object]) -> None:
        """Go on where the last process stopped; see ``SavedState.restore``."""
        state = read_state(fields, len(self._ports))
        for backlog, saved in zip(self._backlogs, state.ports, strict=True):
            backlog.restore(saved.tail)
        for number, (port, saved) in enumerate(zip(self._ports, state.ports, strict=True)):
            port.size = Size(saved.columns, saved.rows)
            port.is_open = saved.is_open
            port.chain, port.chain_bytes = saved.chain, saved.chain_bytes
            control.pending[number] = saved.events
            if saved.is_added:
                control.added.add(number)
            if saved.is_ready:
                control.ready.add(number)
            if port.output is not None:
                port.output.dropped_bytes = saved.dropped_bytes
                port.output.go_on()
        control.sending, control.heard = state.sending, state.heard
        control.restored = True

    def _clear_backlogs(self) -> None:
        for backlog in self._backlogs:
            backlog.clear()

    def _queue_sizes(self) -> tuple[int, ...]:
        pair = (DATA_QUEUE_SIZE, DATA_QUEUE_SIZE)
        if not self._is_multiport:
            return pair
        control = (CONTROL_QUEUE_SIZE, CONTROL_QUEUE_SIZE)
        return pair + control + pair * (len(self._specs) - 1)

    def _resize(self, number: int, size: Size) -> None:
        port = self._ports[number]
        if size == port.size or not self._has_size:
            return
        port.size = size
        if self._control is not None and self._negotiated_multiport:
            self._control.resize(number)  # it saves the size, too
        else:
            self._save()
        if self._context is not None and number == 0:
            self._context.config_changed()
