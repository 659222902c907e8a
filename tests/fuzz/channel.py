# SPDX-License-Identifier: BSD-3-Clause
"""Be a device process that was taken over, for the vmm: say anything, at any time, with any files.

One episode is one process. Whatever it says may end it, once, with a verdict; nothing else may come
of it: no other exception, no call of the transport without the lock, no open descriptor. Then a new
process takes over, and is served.
"""

from __future__ import annotations

import os
from contextlib import suppress
from typing import TYPE_CHECKING

import msgpack

from crosvm_py.device_process import protocol
from devices.virtio.commands import Obeyed, SetSize
from sys_util import child_log, log
from sys_util.facts import fields_of
from tests.crosvm_py.hostile_device import READY, HostileDevice, queue
from tests.fuzz.messages import message_types, sample, spoil_fields
from tests.fuzz.source import one_in, pick, spoil

if TYPE_CHECKING:
    from tests.fuzz.source import Source

MAX_MESSAGES = 60
_TYPES = message_types(protocol.VMM_CODEC)
_CHATTER = (child_log.LogLine, protocol.QueueFailed, protocol.ConfigChanged, protocol.Done)


class ChannelFuzzer:
    """The vmm's side of one device, and process after process that attacks it."""

    def __init__(self) -> None:
        self.mutations = 0
        log.set_sink(lambda _level, _module, _text: None)
        self._fds = len(os.listdir("/proc/self/fd"))
        self._device = HostileDevice()
        self._asked = 0
        self._device.send(READY)  # the first process says what the device is
        self._device.turn()
        self._end()

    def episode(self, source: Source) -> None:
        """Live through one process of the device."""
        device, before = self._device, self._device.failures
        ready = device.ready
        if not one_in(source, 8):
            device.send(READY)
            device.turn()
        for _ in range(1 + source.below(MAX_MESSAGES)):
            if not device.host.is_open:
                break
            self._act(source)
        if device.host.is_open:
            device.sock.close()  # its end, which is an end like any other
            device.turn()
        assert device.failures == before + 1, "a process that ended once was told otherwise"
        assert not any(call.startswith("!") for call in device.events.calls), "without the lock"
        device.events.calls.clear()
        assert device.ready <= ready + 1
        self._take_over()

    def _act(self, source: Source) -> None:
        kind = source.below(10)
        if kind == 0:
            self._ask(source)
        elif kind == 1:
            self._device.turn()
        else:
            self.mutations += 1
            self._say(source)

    def _ask(self, source: Source) -> None:
        """Let the vmm want something of the device, so that there is something to lie about."""
        host = self._device.host
        self._asked += 1
        kind = source.below(6)
        if kind == 0:
            with queue(0) as activation:
                host.activate(1 << 32, [activation])
        elif kind == 1:
            host.reset()
        elif kind == 2:
            host.reset_queue(source.below(3))
        elif kind == 3:
            host.write_config(source.below(8), source.data(4))
        elif kind == 4:
            host.pause(_nothing)
        else:
            host.command(SetSize(source.below(9)), lambda _answer: None)

    def _say(self, source: Source) -> None:
        """Send one message: mostly one that is taken for what it says, so that more can follow."""
        sound = not one_in(source, 12)
        kind = pick(source, _CHATTER if sound else _TYPES)
        fields: list[object] = [kind.TYPE, *(sample(source, check) for check in kind.FIELDS)]
        if kind is protocol.Done and sound:
            fields[1] = self._asked - source.below(3)
        if kind is protocol.ConfigChanged and sound:
            fields[1] = source.data(len(self._device.host.config))
        if not sound and one_in(source, 2):
            spoil_fields(source, fields)
        payload = msgpack.packb(fields)
        if not sound and one_in(source, 3):
            payload = spoil(source, payload)
        fds = [0, 1] if one_in(source, 200) else []
        try:
            self._device.send_raw(payload, fds)
        except BlockingIOError:
            self._device.turn()
        except (BrokenPipeError, OSError):
            return  # the vmm has hung up

    def _take_over(self) -> None:
        """Be a process that behaves: it is taken up, and its answers reach whom they are for."""
        device = self._device
        device.sock.close()
        device.attach()
        ready, failures = device.ready, device.failures
        device.send(READY)
        device.turn()
        assert (device.ready, device.failures) == (ready + 1, failures), device.verdict
        with suppress(BlockingIOError):  # until everything is answered
            while True:
                self._answer()
        device.turn()
        assert device.failures == failures, device.verdict
        self._end()

    def _end(self) -> None:
        """End the process in order; the next one is there, and has said nothing yet."""
        self._device.host.close()
        self._device.sock.close()
        self._device.attach()
        self._asked = 0

    def _answer(self) -> None:
        """Do what the vmm asks for next."""
        message, fds = self._device.take()
        for fd in fds:
            os.close(fd)
        request_id = int(str(next(iter(fields_of(message).values()))))
        if isinstance(message, protocol.Order):
            self._device.send(protocol.Answer(request_id, Obeyed()))
        else:
            self._device.send(protocol.Done(request_id))

    def close(self) -> None:
        """End the vmm's side and see that nothing is left."""
        self._device.close()
        log.set_sink(log.stderr_sink)
        assert len(os.listdir("/proc/self/fd")) <= self._fds, "descriptors are left open"


def _nothing() -> None:
    """Nobody waits."""


def make(_source: Source) -> ChannelFuzzer:
    """Build the rig."""
    return ChannelFuzzer()
