# SPDX-License-Identifier: BSD-3-Clause
"""The driver's writes to the configuration of a device, on their way to its process.

A driver writes one field at a time, and can do so faster than any process reads. As long as few of
its writes are under way each is passed on at once. After that they wait: of the writes to one field
the last one counts, so that the others can go. Where each write is output, as the emergency write
of a console is, all of them are kept, up to ``MAX_OUTPUT``.

Every call needs the device-model lock.
"""

from __future__ import annotations

from collections import deque

from crosvm_py.device_process.protocol import MAX_CONFIG_WRITES, ConfigWrite
from crosvm_py.kinds.kind import NO_OUTPUT
from sys_util.typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

    # Passes writes on to a process, if there is one, and calls back when it has carried them out.
    Send = Callable[[tuple[ConfigWrite, ...], Callable[[], None]], None]

# How many messages may be unanswered before writes wait.
MAX_UNANSWERED: Final = 64

# As many characters as a panic of Linux prints, several times over.
MAX_OUTPUT: Final = 64 * 1024


class ConfigWrites:
    """The writes of one device that its process has not carried out yet."""

    def __init__(
        self,
        send: Send,
        serves: Callable[[], bool],
        output_offset: int = NO_OUTPUT,
        plain_fields: Collection[tuple[int, int]] = (),
    ) -> None:
        """Pass writes on while ``serves`` says that there is a process.

        ``output_offset`` is that of the field to which each write is output; ``plain_fields``, by
        offset and size, take whatever is written.
        """
        self._send = send
        self._serves = serves
        self._output_offset = output_offset
        self._plain_fields = frozenset(plain_fields)
        self._fields: dict[tuple[int, int], ConfigWrite] = {}  # waiting, by offset and size
        self._output: deque[ConfigWrite] = deque()
        self._sent: dict[int, tuple[ConfigWrite, ...]] = {}
        self._last = 0

    def __len__(self) -> int:
        """How many writes are not carried out yet."""
        return len(self._fields) + len(self._output) + sum(map(len, self._sent.values()))

    def over(self, config: bytes) -> bytes:
        """Return the configuration as the driver has written it, of which the process has less."""
        if not (self._plain_fields and (self._sent or self._fields)):
            return config
        written = bytearray(config)
        for write in self._in_order():
            if (write.offset, len(write.data)) in self._plain_fields:
                written[write.offset : write.offset + len(write.data)] = write.data
        return bytes(written)

    def _in_order(self) -> list[ConfigWrite]:
        sent = (write for batch in self._sent.values() for write in batch)
        return [*sent, *self._fields.values(), *self._output]

    def add(self, offset: int, data: bytes) -> bool:
        """Take a write of the driver; return False if it is output for which there is no room."""
        kept = self._keep(ConfigWrite(offset, data))
        self._pass_on()
        return kept

    def send_fields(self) -> None:
        """Pass on what waits, except for output: the next request has to come after it."""
        while self._fields and self._serves():
            self._send_batch(self._take_fields())

    def forget_driver(self) -> None:
        """The driver resets the device: no other process is told what it wrote into fields."""
        self._fields.clear()
        for number, batch in self._sent.items():
            self._sent[number] = tuple(filter(self._is_output, batch))

    def repeat(self) -> None:
        """Tell a new process what the last one may not have carried out."""
        everything = self._in_order()
        self._sent, self._fields, self._output = {}, {}, deque()
        for write in everything:
            self._keep(write)
        self._pass_on()

    def _is_output(self, write: ConfigWrite) -> bool:
        return write.offset == self._output_offset

    def _keep(self, write: ConfigWrite) -> bool:
        if self._is_output(write):
            has_room = len(self._output) < MAX_OUTPUT
            if has_room:
                self._output.append(write)
            return has_room
        key = (write.offset, len(write.data))
        self._fields.pop(key, None)  # so that it is the last again
        self._fields[key] = write
        return True

    def _pass_on(self) -> None:
        while (self._fields or self._output) and self._has_way():
            batch = self._take_fields()
            while self._output and len(batch) < MAX_CONFIG_WRITES:
                batch.append(self._output.popleft())
            self._send_batch(batch)

    def _has_way(self) -> bool:
        return len(self._sent) < MAX_UNANSWERED and self._serves()

    def _take_fields(self) -> list[ConfigWrite]:
        keys = list(self._fields)[:MAX_CONFIG_WRITES]
        return [self._fields.pop(key) for key in keys]

    def _send_batch(self, batch: list[ConfigWrite]) -> None:
        self._last = number = self._last + 1
        self._sent[number] = tuple(batch)
        self._send(self._sent[number], lambda: self._carried_out(number))

    def _carried_out(self, number: int) -> None:
        self._sent.pop(number, None)
        self._pass_on()
