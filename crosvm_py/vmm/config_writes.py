# SPDX-License-Identifier: BSD-3-Clause
"""The driver's writes to a device's configuration space, on their way to the device process.

A driver writes one field at a time, and can do so faster than the process reads. While few writes
are unanswered, each is sent at once. After that, writes wait here, and only the last write to each
field is kept. The exception is a field where each write is output, such as the emergency write of
a console: there all writes are kept, up to ``MAX_OUTPUT``.

Callers hold the device-model lock for every call.
"""

from __future__ import annotations

from collections import deque

from crosvm_py.device_process.protocol import MAX_CONFIG_WRITES, ConfigWrite
from crosvm_py.kinds.kind import NO_OUTPUT
from sys_util.typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

    # Sends writes to the process, if there is one, and calls back when it has carried them out.
    Send = Callable[[tuple[ConfigWrite, ...], Callable[[], None]], None]

# How many messages may be unanswered before writes wait.
MAX_UNANSWERED: Final = 64

# Several times what Linux prints when it panics; each write holds one character.
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
        """Pass writes to ``send`` while ``serves`` says that there is a process.

        Args:
            send: sends writes to the process.
            serves: whether there is a process.
            output_offset: offset in bytes of the field where each write is output.
            plain_fields: offset and size in bytes of each field that keeps any value written to it.
        """
        self._send = send
        self._serves = serves
        self._output_offset = output_offset
        self._plain_fields = frozenset(plain_fields)
        self._fields: dict[tuple[int, int], ConfigWrite] = {}  # waiting, by offset and size
        self._output: deque[ConfigWrite] = deque()
        self._sent: dict[int, tuple[ConfigWrite, ...]] = {}  # unanswered, by number of the message
        self._last = 0  # the number of the last message

    def __len__(self) -> int:
        """How many writes are not carried out yet."""
        return len(self._fields) + len(self._output) + sum(map(len, self._sent.values()))

    def over(self, config: bytes) -> bytes:
        """Return ``config``, the process's copy, with the driver's pending writes applied to it."""
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
        """Send all waiting writes but output, so that the next request arrives after them."""
        while self._fields and self._serves():
            self._send_batch(self._take_fields())

    def forget_driver(self) -> None:
        """Drop all pending writes but output: the driver resets the device."""
        self._fields.clear()
        for number, batch in self._sent.items():
            self._sent[number] = tuple(filter(self._is_output, batch))

    def repeat(self) -> None:
        """Send a new process all writes that the old one may not have carried out."""
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
        self._fields.pop(key, None)  # a dict keeps the place of a key: make this write the last
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
