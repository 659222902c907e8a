# SPDX-License-Identifier: BSD-3-Clause
"""One connection between a port of the guest and a socket of the host (virtio 1.3 §5.10.6).

The connection never waits and never holds more than its buffer. It reads from the host only as much
as the guest has credit and receive buffers for. It gives the guest new credit only when the host
has taken earlier data.
"""

from __future__ import annotations

from devices.virtio.vsock.credit import Credit
from devices.virtio.vsock.hub import WATCH_NOTHING, State
from devices.virtio.vsock.inbox import Inbox, MessageTooLongError
from devices.virtio.vsock.outbox import MessageOutbox, StreamOutbox
from devices.virtio.vsock.packet import (
    HEADER_BYTES,
    MAX_DATA_BYTES,
    SEQ_EOM,
    VMADDR_CID_HOST,
    Op,
    PacketError,
    Shutdown,
    SocketType,
    pack_header,
)
from sys_util.event_loop import EPOLLERR, EPOLLHUP, EPOLLIN, EPOLLOUT
from sys_util.log import get_logger
from sys_util.socket import MSG_DONTWAIT, MSG_NOSIGNAL, SHUT_RD, SHUT_WR
from sys_util.typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from devices.virtio.queue.chain import Reader, Writer
    from devices.virtio.vsock.hub import Hub
    from devices.virtio.vsock.outbox import Outbox
    from devices.virtio.vsock.packet import Header
    from sys_util import socket

# Packets without data, in the order in which they are sent.
_ORDER: Final = (Op.REQUEST, Op.RESPONSE, Op.CREDIT_UPDATE)

# Both ends of a connection can cause lines.
_log = get_logger("devices.virtio.vsock").limited()


class Connection:
    """One connection. Owns the host's socket."""

    __slots__ = (
        "_asked_credit",
        "_credit",
        "_hub",
        "_hung_up",
        "_inbox",
        "_outbox",
        "_peer_shutdown",
        "_pending",
        "_shutdown",
        "_told_shutdown",
        "_write_dead",
        "announced",
        "key",
        "sock",
        "socket_type",
        "state",
        "watched",
    )

    def __init__(
        self,
        hub: Hub,
        key: tuple[int, int],
        socket_type: SocketType,
        sock: socket.socket,
        buffer_bytes: int,
    ) -> None:
        """``key`` is the host's port and the guest's. Call ``ask`` or ``accept`` next."""
        self.key = key
        self.socket_type = socket_type
        self.sock = sock
        self.state = State.REQUESTED
        self.announced = False  # set by the hub: it is queued to send packets
        self.watched = WATCH_NOTHING  # set by the hub: the events it waits for
        self._hub = hub
        self._credit = Credit(buffer_bytes)
        self._outbox: Outbox
        if socket_type == SocketType.STREAM:
            self._outbox = StreamOutbox(sock)
        else:
            self._outbox = MessageOutbox(sock, hub.messages)
        self._inbox = Inbox(sock, socket_type, hub.scratch[:buffer_bytes])
        self._pending: set[Op] = set()  # packets without data that are due
        self._hung_up = False  # the host's process has closed its side of the socket
        self._write_dead = False  # the socket takes no more data
        self._asked_credit = False
        self._peer_shutdown = Shutdown.NOTHING
        self._shutdown = Shutdown.NOTHING  # what the host will not do any more
        self._told_shutdown = Shutdown.NOTHING  # how much of it the guest knows

    def ask(self, early: bytes) -> None:
        """Ask the guest to accept; ``early`` is data that the host's process sent already."""
        self._inbox.put_first(early)
        self._pending.add(Op.REQUEST)
        self._hub.announce(self)
        self._hub.start_deadline(self)

    def accept(self, request: Header) -> None:
        """Answer the guest's request, after the host's process has accepted."""
        self._credit.learn(request.buf_alloc, request.fwd_cnt)
        self._pending.add(Op.RESPONSE)
        self.state = State.ESTABLISHED
        self._move_on()

    def kill(self) -> None:
        """Close the host's socket; the guest gets a reset."""
        if self.state in (State.DEAD, State.GONE):
            return
        self.discard()
        self._pending.clear()
        self.state = State.DEAD
        self._hub.announce(self)

    def discard(self) -> None:
        """Close the host's socket and drop all data on its way."""
        if self.watched != WATCH_NOTHING:
            self._hub.watch(self, WATCH_NOTHING)
        self._outbox.discard()
        self._inbox.discard()
        self.sock.close()

    def on_deadline(self) -> None:
        """End the connection: the guest did not answer in time."""
        if Op.REQUEST in self._pending:
            self._hub.forget(self)  # the guest does not know of it
        elif self.state in (State.REQUESTED, State.CLOSING):
            self.kill()

    def _move_on(self) -> None:
        """Announce what is to be sent, and wait for those events of the socket that matter now."""
        if self.has_output:
            self._hub.announce(self)
        if self.state is not State.ESTABLISHED:
            return
        events = 0 if self._outbox.is_empty else EPOLLOUT
        inbox = self._inbox
        if inbox.at_end:
            if not events and self._hung_up:
                events = WATCH_NOTHING  # epoll would report the hang-up again and again
        elif not inbox.has_data and (self._credit.room or not self._asked_credit):
            events |= EPOLLIN
        elif not events:
            events = WATCH_NOTHING
        if events != self.watched:
            self._hub.watch(self, events)

    # Packets of the guest

    def on_packet(self, header: Header, reader: Reader) -> None:
        """Take a packet of the guest.

        Raises:
            PacketError: the guest broke a rule; kill the connection.
        """
        if self.state is State.DEAD:
            return
        if header.socket_type != self.socket_type:
            raise PacketError(f"socket type {header.socket_type} on a {self.socket_type.name}")
        op = header.op
        if op == Op.RST:
            self._on_reset()
            return
        self._credit.learn(header.buf_alloc, header.fwd_cnt)
        if self._credit.room:
            self._asked_credit = False
        asked = self.state is State.REQUESTED
        if op == Op.RW and not asked:
            self._on_data(header, reader)
        elif op == Op.RESPONSE and asked and Op.REQUEST not in self._pending:
            self._on_response()
        elif op == Op.SHUTDOWN and not asked:
            self._on_shutdown(Shutdown(header.flags & Shutdown.BOTH))
        elif op == Op.CREDIT_REQUEST and not asked:
            self._pending.add(Op.CREDIT_UPDATE)
        elif op != Op.CREDIT_UPDATE or asked:
            raise PacketError(f"{Op(op).name} on a connection that is {self.state.value}")
        self._move_on()

    def _on_response(self) -> None:
        self.state = State.ESTABLISHED
        try:
            answer = b"OK %d\n" % self.key[0]
            self.sock.send(answer, MSG_DONTWAIT | MSG_NOSIGNAL)
        except OSError:
            self._stop_writing()

    def _on_reset(self) -> None:
        draining = Shutdown.SEND in self._peer_shutdown and not self._outbox.is_empty
        if draining and not self._hung_up:
            self.state = State.DRAINING
            self._pending.clear()
            self._hub.free_ports(self)
            self._hub.watch(self, EPOLLOUT)
        else:
            self._hub.forget(self)

    def _on_data(self, header: Header, reader: Reader) -> None:
        if Shutdown.SEND in self._peer_shutdown:
            raise PacketError("data after the guest's end of data")
        length = header.length
        self._credit.receive(length)
        if self._write_dead:
            self._credit.deliver(length)  # it is lost; a SHUTDOWN tells the guest soon
            return
        end = self.socket_type == SocketType.SEQPACKET and bool(header.flags & SEQ_EOM)
        try:
            delivered = self._outbox.put(reader, length, end_of_message=end)
        except BufferError as error:
            raise PacketError(str(error)) from error
        except OSError:
            self._stop_writing()
        else:
            self._on_delivered(delivered)

    def _on_delivered(self, length: int) -> None:
        credit = self._credit
        credit.deliver(length)
        if self.state is State.DRAINING:
            return  # the guest has closed the connection and needs no credit
        # The guest waits until it has credit for a whole message, so tell it of any change.
        at_once = self.socket_type == SocketType.SEQPACKET and self._outbox.is_empty
        if credit.update_is_due(at_once=at_once):
            self._pending.add(Op.CREDIT_UPDATE)

    def _on_shutdown(self, flags: Shutdown) -> None:
        self._peer_shutdown |= flags
        if Shutdown.RECEIVE in self._peer_shutdown:
            self._inbox.discard()
            self._end_of_host()
            self._shut(SHUT_RD)
        self._finish_writing()

    def _finish_writing(self) -> None:
        """Pass on the guest's end of data once all data before it is delivered."""
        if Shutdown.SEND not in self._peer_shutdown or not self._outbox.is_empty:
            return
        if self._peer_shutdown == Shutdown.BOTH:
            self.kill()  # a clean close ends with a reset too (§5.10.6.5)
        elif not self._write_dead:
            self._shut(SHUT_WR)

    def _shut(self, how: int) -> None:
        try:
            self.sock.shutdown(how)
        except OSError:
            return  # the host's process has closed it

    # The socket of the host

    def on_host(self, events: int) -> None:
        """Handle ``events`` of the socket, from epoll."""
        if events & (EPOLLHUP | EPOLLERR):
            self._hung_up = True
        if not self._outbox.is_empty:
            self._flush()
        if self.state is State.DRAINING:
            if self._outbox.is_empty:
                self._hub.forget(self)
            return
        if not self._inbox.at_end:
            self._inbox.readable = True  # data or the end of it
        elif self._hung_up and not self._write_dead:
            self._stop_writing()
        self._move_on()

    def _flush(self) -> None:
        try:
            delivered = self._outbox.flush()
        except OSError:
            self._stop_writing()
            return
        self._on_delivered(delivered)
        if self.state is not State.DRAINING:
            self._finish_writing()

    def _stop_writing(self) -> None:
        """Note that the host takes no more data; what waits for it is dropped, as in a pipe."""
        self._write_dead = True
        self._outbox.discard()
        self._shutdown |= Shutdown.RECEIVE
        if self.state is not State.DRAINING:
            self._finish_writing()

    def _end_of_host(self) -> None:
        """Note that the host sends no more data, or that the guest does not want any."""
        self._shutdown |= Shutdown.SEND
        self._hung_up |= self._inbox.failed
        if self._hung_up and not self._write_dead:
            self._stop_writing()

    # Packets to the guest

    @property
    def has_output(self) -> bool:
        """Whether ``fill`` probably has a packet to write."""
        if self._pending or self.state is State.DEAD:
            return True
        if self.state is not State.ESTABLISHED:
            return False
        if self._inbox.has_data:
            return bool(self._credit.room) or not self._asked_credit
        return self._owes_shutdown()

    def fill(self, writer: Writer) -> bool:
        """Write one packet to a buffer larger than a header; return False when there is none."""
        filled = self._fill(writer)
        self._move_on()
        return filled

    def _fill(self, writer: Writer) -> bool:
        if self.state is State.DEAD:
            self._write(writer, Op.RST)
            self._hub.forget(self)
            return True
        if self._pending:
            op = next(op for op in _ORDER if op in self._pending)
            self._pending.discard(op)
            self._write(writer, op)
            return True
        if self.state is not State.ESTABLISHED:
            return False
        if self._inbox.has_data and self._fill_data(writer):
            return True
        if not self._owes_shutdown():
            return False
        self._fill_shutdown(writer)
        return True

    def _owes_shutdown(self) -> bool:
        """Whether to tell the guest of an end now, which comes after all data before it."""
        if self.state is not State.ESTABLISHED or self._inbox.has_pending:
            return False
        return self._shutdown != self._told_shutdown and self._peer_shutdown != Shutdown.BOTH

    def _fill_shutdown(self, writer: Writer) -> None:
        self._told_shutdown = self._shutdown
        self._write(writer, Op.SHUTDOWN, flags=self._shutdown)
        if self._shutdown == Shutdown.BOTH:
            self.state = State.CLOSING
            self._hub.watch(self, WATCH_NOTHING)
            self._hub.start_deadline(self)

    def _fill_data(self, writer: Writer) -> bool:
        credit = self._credit
        if not credit.room:
            if self._asked_credit:
                return False
            self._asked_credit = True
            self._write(writer, Op.CREDIT_REQUEST)
            return True
        data = writer.split_at(HEADER_BYTES)
        limit = min(data.remaining, credit.room, MAX_DATA_BYTES)
        try:
            length, flags = self._inbox.read_into(data, limit, credit.peer_buffer_bytes)
        except MessageTooLongError as error:
            _log.warning("port %d: %s", self.key[0], error)
            self.kill()
            return False
        if not length:
            if self._inbox.at_end:
                self._end_of_host()
            return False
        self._write(writer, Op.RW, length=length, flags=flags)
        return True

    def _write(self, writer: Writer, op: Op, *, length: int = 0, flags: int = 0) -> None:
        self._credit.send(length)
        host_port, guest_port = self.key
        buf_alloc, fwd_cnt = self._credit.tell()
        packet = (length, self.socket_type, op, flags, buf_alloc, fwd_cnt)
        cid = self._hub.guest_cid
        writer.write(pack_header(VMADDR_CID_HOST, cid, host_port, guest_port, *packet))
