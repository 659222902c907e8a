# SPDX-License-Identifier: BSD-3-Clause
"""One port of a console: two queues, and their two ends on the host (virtio 1.3 §5.3.6).

Nothing is copied here and no chain is held: output goes from guest memory to the host, input from
the host into guest memory, and a chain that cannot be finished now is put back into its queue. So a
guest that does not read makes the writer on the host wait.

Each chain is published as soon as it is done, and how much of it was written or read is stored
right after the system call, for a restarted process. Only if the process is killed between the two,
the output of that call is written twice, or its input is lost.
"""

from __future__ import annotations

import os

from devices.virtio.console.backlog import READ, WRITTEN, progress
from devices.virtio.console.output import IOV_MAX
from sys_util.log import get_logger
from sys_util.typing import TYPE_CHECKING, Final, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable

    from devices.virtio.console.backlog import Backlog
    from devices.virtio.console.output import Output
    from devices.virtio.context import DeviceContext
    from devices.virtio.queue.chain import DescriptorChain, Reader
    from devices.virtio.queue.port import QueuePort

# The bounds of one turn of a queue; after it other queues and messages of the vmm are served.
CHAINS_PER_TURN: Final = 64
BYTES_PER_TURN: Final = 1 << 20
READ_BYTES: Final = 64 * 1024

NO_CHAIN: Final = -1

_log = get_logger("devices.virtio.console").limited()


class Size(NamedTuple):
    """A terminal's size in characters; 0 if it is not known."""

    columns: int
    rows: int


class Input:
    """Where the guest's input comes from. Owns the descriptor."""

    def __init__(self, fd: int, *, regular: bool) -> None:
        """``regular``: a file or the like, which is always readable and which epoll(7) refuses."""
        self.fd = fd
        self.regular = regular
        self.ended = False


class ConsolePort:
    """The queues of one port and its two ends on the host; either may be missing."""

    def __init__(
        self,
        label: str,
        context: DeviceContext,
        queues: tuple[int, int],
        backlog: Backlog,
        output: Output | None,
        source: Input | None,
    ) -> None:
        """``queues`` are receiveq and transmitq, named from the driver's side."""
        self.is_open = False  # the driver wants input
        self.output = output
        self.save: Callable[[], None] = _do_nothing
        # Place and done bytes of an unfinished chain of which a part is in the backlog.
        self.chain = NO_CHAIN
        self.chain_bytes = 0
        self._label = label
        self._context = context
        self._receive_queue, self._transmit_queue = queues
        self._backlog = backlog
        self._input = source
        self._watching = False
        self._queue: QueuePort | None = None  # the queue of that chain
        self._source_queue: QueuePort | None = None
        # Reader, length and place of the chain that is being written.
        self._current: tuple[Reader, int, int] | None = None
        self.on_input: Callable[[], None] = _do_nothing
        if output is not None:
            output.attach(context)
            output.on_room = self._on_room
            output.on_kept = self._on_kept

    def close_ends(self) -> None:
        """Close both descriptors; the port must not be used after this."""
        if self.output is not None:
            self.output.close()
        if self._input is not None:
            os.close(self._input.fd)

    # From the guest

    def transmit(self) -> bool:
        """Write one turn of what the driver offers; return whether there is more to do."""
        port = self._context.port(self._transmit_queue)
        if port is None or self._is_blocked():
            return False
        if port is not self._queue:
            self._begin(port)
        left_bytes = BYTES_PER_TURN
        for _ in range(CHAINS_PER_TURN):
            chain = port.take()
            if chain is None:
                if not port.wait():
                    return False
                continue
            left_bytes -= self._write(port, chain, max(0, left_bytes))
            if chain.reader.remaining:
                break
        port.flush()
        return not self._is_blocked()

    def _begin(self, port: QueuePort) -> None:
        """Serve a new queue; if it is a resumed one, a part of its first chain may be done."""
        self._queue = port
        if not port.resumed:
            self._forget_chain()

    def _forget_chain(self) -> None:
        self._backlog.forget(WRITTEN)
        if self.chain != NO_CHAIN:
            self.chain, self.chain_bytes = NO_CHAIN, 0
            self.save()

    def write_now(self, character: bytes) -> None:
        """Write one character that comes without a queue (VIRTIO_CONSOLE_F_EMERG_WRITE)."""
        if self.output is not None:
            self.output.write_now(character)

    def drain(self) -> int:
        """Write as much as possible now; return how many bytes still wait for a reader."""
        self.transmit()
        return 0 if self.output is None else self.output.waiting_bytes

    def _write(self, port: QueuePort, chain: DescriptorChain, limit_bytes: int) -> int:
        """Write up to ``limit_bytes`` of ``chain`` and return how many were written."""
        reader, output = chain.reader, self.output
        if output is None:
            length = reader.remaining
            reader.skip(length)
            port.give_back(chain)
            return length
        offered, place = reader.remaining, port.last_taken
        done = min(offered, self._backlog.length_of(WRITTEN, place))
        if place == self.chain:
            done = max(done, min(offered, self.chain_bytes))
        reader.skip(done)
        self._current = (reader, offered, place)
        output.write(reader, limit_bytes, progress(place, done))
        self._current = None
        if reader.remaining:
            port.put_back(chain)
        else:
            port.give_back(chain)
            port.publish()
            if self.chain != NO_CHAIN:
                self._forget_chain()
        return offered - done - reader.remaining

    def _on_kept(self) -> None:
        """Save the progress: a part of the current chain is in the backlog now."""
        if self._current is not None:
            reader, offered, self.chain = self._current
            self.chain_bytes = offered - reader.remaining
        self.save()
        if self._current is not None:
            self._backlog.forget(WRITTEN)

    def _is_blocked(self) -> bool:
        """Return whether output waits in guest memory for room; that of a console never does."""
        return self.output is not None and self.output.holds

    def _on_room(self) -> None:
        if self.transmit():
            self._context.call_later(0.0, self._on_room)

    # To the guest

    def receive(self) -> bool:
        """Use new buffers for input; return whether there is more to do at once."""
        port = self._context.port(self._receive_queue)
        if port is not None and port is not self._source_queue:
            self._begin_input(port)
        source = self._input
        if source is None or source.ended or not self.is_open:
            return False
        if source.regular:
            return all(self._read(source) for _ in range(CHAINS_PER_TURN))
        self._watch(source)
        return False

    def open(self) -> None:
        """Let input come: the driver has opened the port."""
        self.is_open = True
        self._receive_more()

    def close(self) -> None:
        """Let no more input come until ``open``."""
        self.is_open = False
        self._unwatch()

    def reset(self) -> None:
        """Forget the driver."""
        self.close()
        self._forget_chain()

    def _begin_input(self, port: QueuePort) -> None:
        """Give the driver the input that the last process had read but not published."""
        self._source_queue = port
        place = (port.last_taken + 1) & 0xFFFF
        count = self._backlog.length_of(READ, place) if port.resumed else 0
        chain = port.take() if count else None
        if chain is not None and port.last_taken == place:
            chain.writer.commit(min(count, chain.writer.remaining))
            port.give_back(chain)
            port.flush()
        elif chain is not None:
            port.put_back(chain)
        self._backlog.forget(READ)

    def _receive_more(self) -> None:
        if self.receive():
            self._context.call_later(0.0, self._receive_more)

    def _on_readable(self, _events: int) -> None:
        if self._input is not None and not self._read(self._input):
            self._unwatch()

    def _read(self, source: Input) -> bool:
        """Read into one chain; return whether there may be more input and room for it."""
        port = self._context.port(self._receive_queue)
        if port is None or source.ended:
            return False
        for _ in range(CHAINS_PER_TURN):
            chain = port.take()
            if chain is None:
                if not port.wait():
                    return False  # a kick comes when the driver has room
            elif chain.writer.remaining and not chain.reader.remaining:
                return self._fill(source, port, chain)
            else:
                _log.warning("%s: buffer for input without room, or with output", self._label)
                port.give_back(chain)
        port.flush()
        return True

    def _fill(self, source: Input, port: QueuePort, chain: DescriptorChain) -> bool:
        vectors = chain.writer.iovecs(min(chain.writer.remaining, READ_BYTES))[:IOV_MAX]
        cells, nothing = self._backlog.cells, progress(port.last_taken, 0)
        try:
            count = os.readv(source.fd, vectors)
            cells[READ] = nothing + count
        except BlockingIOError:
            port.put_back(chain)
            return True
        except OSError as error:
            _log.warning("%s: input ends: %s", self._label, error.strerror)
            count = 0
        if not count:
            source.ended = True
            port.put_back(chain)
            port.flush()
            return False
        chain.writer.commit(count)
        port.give_back(chain)
        port.flush()
        self.on_input()
        return True

    def _watch(self, source: Input) -> None:
        if not self._watching:
            self._watching = True
            self._context.add_fd(source.fd, self._on_readable)

    def _unwatch(self) -> None:
        if self._watching and self._input is not None:
            self._watching = False
            self._context.remove_fd(self._input.fd)


def _do_nothing() -> None:
    """Do nothing."""
