# SPDX-License-Identifier: BSD-3-Clause
"""All connections of one guest: which there are, and which of them sends next.

The host's side is that of Firecracker and Cloud Hypervisor. Host to guest: a process connects to
the device's socket (``entrance.py``). Guest to host: the device connects to the listener at
``<path>_<port>``, by a socket of the guest's type (``attempts.py``). Theirs are stream sockets; we
have a second one, ``<path>.seqpacket``, for connections that carry messages.
"""

from __future__ import annotations

from collections import deque

from devices.virtio.vsock.attempts import Attempts
from devices.virtio.vsock.common import FROM_GUEST, FROM_HOST, REFUSED, RESETS
from devices.virtio.vsock.connection import Connection
from devices.virtio.vsock.entrance import Entrance
from devices.virtio.vsock.hub import WATCH_NOTHING, State
from devices.virtio.vsock.outbox import MessagePool
from devices.virtio.vsock.packet import (
    VMADDR_CID_HOST,
    Header,
    Op,
    PacketError,
    SocketType,
    read_header,
    reset_reply,
)
from devices.virtio.vsock.ports import FIRST_LOCAL_PORT, LocalPorts
from sys_util.log import get_logger
from sys_util.typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from devices.virtio.context import DeviceContext
    from devices.virtio.queue.chain import Reader, Writer
    from sys_util import socket

# As many as Firecracker and Cloud Hypervisor have.
MAX_CONNECTIONS: Final = 1023

# The first connections get buffers so large that a guest rarely waits. Later ones get small
# buffers, so that all of them together stay within the memory limit of the jail.
LARGE_BUFFER_BYTES: Final = 192 * 1024
SMALL_BUFFER_BYTES: Final = 64 * 1024
MAX_LARGE_BUFFERS: Final = 256

# Resets answer packets that belong to no connection. While this many of them wait for receive
# buffers, the guest's next packets are not read (virtio 1.3 §5.10.6.1).
MAX_WAITING_RESETS: Final = 256

# The time that Linux gives the other side of a vsock to close (VSOCK_CLOSE_TIMEOUT); here also the
# time for an answer. It is counted in ticks, which do not come while the guest is paused.
DEADLINE_TICKS: Final = 8
TICK_SECONDS: Final = 1.0


# A pair of ports that is never connected: the driver answers packets for it by a reset (§5.10.6.4).
_ECHO_PORTS: Final = (FIRST_LOCAL_PORT - 1, 0xFFFF_FFFF)

_limited = get_logger("devices.virtio.vsock").limited()  # both sides can cause such lines


class Muxer:
    """The table of connections, and the ``Hub`` of each of them."""

    def __init__(
        self,
        guest_cid: int,
        broker: socket.socket,
        listeners: Sequence[tuple[socket.socket, SocketType]],
        on_output: Callable[[], None],
    ) -> None:
        """``on_output`` is called when there are packets to fetch.

        Take over ``broker``, the channel to the broker, and ``listeners``.
        """
        self.guest_cid = guest_cid
        self.messages = MessagePool()
        self.scratch = memoryview(bytearray(LARGE_BUFFER_BYTES))
        self.socket_types: frozenset[int] = frozenset()  # what the driver negotiated
        self._attempts = Attempts(broker, self._on_connected, self._on_refused)
        self._entrance = Entrance(listeners, self._on_host_connect)
        self._on_output = on_output
        self._connections: dict[tuple[int, int], Connection] = {}
        self._draining: set[Connection] = set()
        self._senders: deque[Connection] = deque()  # those with packets for the guest, in turn
        self._resets: deque[Header] = deque()
        self._on_echo: Callable[[], None] | None = None
        self._deadlines: dict[Connection, int] = {}  # ticks; soonest first
        self._now = 0
        self._ticking = False
        self._ports: LocalPorts
        self._context: DeviceContext

    def attach(self, context: DeviceContext) -> None:
        """Start to listen for host processes."""
        self._context = context
        self._ports = LocalPorts(context.saved)
        self._attempts.attach(context)
        self._entrance.attach(context, self._has_room)

    def reset(self) -> None:
        """Close every connection that the guest knows of."""
        self._attempts.clear()
        for connection in tuple(self._connections.values()):
            self.forget(connection)
        self._senders.clear()
        self._resets.clear()
        self._on_echo = None
        self.socket_types = frozenset()

    def close(self) -> None:
        """Close every socket."""
        self.reset()
        for connection in tuple(self._draining):
            self.forget(connection)
        self._attempts.close()
        self._entrance.close()

    # Packets to and from the guest

    @property
    def has_output(self) -> bool:
        """Whether ``fill`` should be called with a buffer."""
        return bool(self._resets or self._senders)

    @property
    def is_congested(self) -> bool:
        """Whether the guest has to offer receive buffers before its next packets are read."""
        return len(self._resets) >= MAX_WAITING_RESETS

    def fill(self, writer: Writer) -> bool:
        """Write a packet to a buffer larger than a header; return False if it was not used."""
        if self._resets:
            writer.write(self._resets.popleft().pack())
            return True
        connection = self._senders.popleft()
        connection.announced = False
        if connection.state is State.GONE:
            return False
        return connection.fill(writer)

    def take(self, reader: Reader) -> None:
        """Take one packet of the guest.

        Raises:
            GuestError: it was nonsense; where an answer is possible, it was given.
        """
        try:
            header = read_header(reader, self.guest_cid)
            if header.socket_type not in self.socket_types:
                raise PacketError(f"socket type {header.socket_type} was not negotiated", header)
        except PacketError as error:
            if error.header is not None:
                self._refuse(error.header)
            raise
        connection = self._connections.get((header.dst_port, header.src_port))
        if connection is None:
            self._on_unknown(header)
            return
        try:
            connection.on_packet(header, reader)
        except PacketError:
            self._context.counters.add(RESETS)
            connection.kill()
            raise

    def begin_echo(self, on_echo: Callable[[], None]) -> None:
        """Wait for the answer to ``echo_request``.

        Until ``end_echo`` no packet of old connections is answered: the driver is about to close
        them all, and many resets would delay its answer.
        """
        self._on_echo = on_echo

    def echo_request(self) -> bytes:
        """Return a packet that the driver answers when it has seen all packets before it."""
        host_port, guest_port = _ECHO_PORTS
        addresses = (VMADDR_CID_HOST, self.guest_cid, host_port, guest_port)
        socket_type = min(self.socket_types, default=SocketType.STREAM)
        return Header(*addresses, 0, socket_type, Op.CREDIT_REQUEST, 0, 0, 0).pack()

    def end_echo(self) -> None:
        """Answer everything again."""
        self._on_echo = None

    def _refuse(self, header: Header) -> None:
        """Answer a packet that cannot be taken: end its connection, if it has one."""
        ports = (header.dst_port, header.src_port)
        connection = self._connections.get(ports)
        if connection is not None:
            connection.kill()
        elif self._on_echo is not None and header.op != Op.REQUEST:
            if ports == _ECHO_PORTS:
                self._on_echo()
        elif header.op != Op.RST:
            self._context.counters.add(REFUSED if header.op == Op.REQUEST else RESETS)
            self._resets.append(reset_reply(header))

    def _on_unknown(self, header: Header) -> None:
        if self._attempts.cancel((header.dst_port, header.src_port)):
            self._refuse(header)  # the guest gave up, or did not wait for the answer
        elif header.op == Op.REQUEST:
            self._on_request(header)
        else:
            self._refuse(header)

    # Connections that the guest begins

    def _on_request(self, header: Header) -> None:
        if not self._has_room():
            _limited.warning("the guest has %d connections, that is all", MAX_CONNECTIONS)
            self._refuse(header)
            return
        self._attempts.begin(header)

    def _on_connected(self, request: Header, sock: socket.socket) -> None:
        ports = (request.dst_port, request.src_port)
        connection = self._add(ports, SocketType(request.socket_type), sock)
        self._context.counters.add(FROM_GUEST)
        try:
            connection.accept(request)
        except PacketError as error:
            _limited.warning("%s", error)
            connection.kill()
        self._on_output()

    def _on_refused(self, request: Header) -> None:
        self._refuse(request)
        self._on_output()

    # Connections that the host begins

    def _on_host_connect(
        self, sock: socket.socket, socket_type: SocketType, port: int, early: bytes
    ) -> None:
        if socket_type not in self.socket_types:
            _limited.debug("port %d: no driver in the guest, or not for such sockets", port)
            sock.close()
            return
        connection = self._add((self._local_port(port), port), socket_type, sock)
        self._context.counters.add(FROM_HOST)
        connection.ask(early)
        self._on_output()

    def _local_port(self, guest_port: int) -> int:
        """Return a port of the host that is free towards ``guest_port``."""
        while True:
            port = self._ports.take()
            if (port, guest_port) not in self._connections:
                return port

    # The table, and what its connections need

    def _has_room(self) -> bool:
        count = len(self._connections) + len(self._draining) + len(self._attempts)
        return count + self._entrance.waiting < MAX_CONNECTIONS

    def _add(
        self, key: tuple[int, int], socket_type: SocketType, sock: socket.socket
    ) -> Connection:
        many = len(self._connections) + len(self._draining) >= MAX_LARGE_BUFFERS
        size = SMALL_BUFFER_BYTES if many else LARGE_BUFFER_BYTES
        connection = Connection(self, key, socket_type, sock, size)
        self._connections[key] = connection
        return connection

    def announce(self, connection: Connection) -> None:
        if not connection.announced:
            connection.announced = True
            self._senders.append(connection)

    def watch(self, connection: Connection, events: int) -> None:
        fd = connection.sock.fileno()
        before, connection.watched = connection.watched, events
        if events == before:
            return
        if events == WATCH_NOTHING:
            self._context.remove_fd(fd)
        elif before == WATCH_NOTHING:
            self._context.add_fd(fd, lambda ready: self._on_host(connection, ready), events=events)
        else:
            self._context.modify_fd(fd, events)

    def _on_host(self, connection: Connection, events: int) -> None:
        connection.on_host(events)
        self._on_output()

    def start_deadline(self, connection: Connection) -> None:
        self._deadlines.pop(connection, None)
        self._deadlines[connection] = self._now + DEADLINE_TICKS
        self._start_ticking()

    def _start_ticking(self) -> None:
        if self._deadlines and not self._ticking:
            self._ticking = True
            self._context.call_later(TICK_SECONDS, self._tick)

    def _tick(self) -> None:
        self._ticking = False
        self._now += 1
        for connection, deadline in tuple(self._deadlines.items()):
            if deadline > self._now:
                break
            del self._deadlines[connection]
            connection.on_deadline()
        self._start_ticking()
        self._on_output()

    def free_ports(self, connection: Connection) -> None:
        del self._connections[connection.key]
        self._draining.add(connection)

    def forget(self, connection: Connection) -> None:
        if self._connections.get(connection.key) is connection:
            del self._connections[connection.key]
        self._draining.discard(connection)
        self._deadlines.pop(connection, None)
        connection.discard()
        connection.state = State.GONE
