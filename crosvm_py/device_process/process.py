# SPDX-License-Identifier: BSD-3-Clause
"""One device process, from its jail to its end.

It enters the jail, maps guest memory, builds its device and loads its filter. Only then it sends
``Ready`` and reads anything that a guest has written. It ends when the vmm closes the channel.
"""

from __future__ import annotations

import os
import select
import sys

from crosvm_py.device_process import protocol
from crosvm_py.device_process.configuration import Configuration
from crosvm_py.exit_status import EXIT_BUG, EXIT_HOST
from crosvm_py.kinds.table import build_device
from devices.virtio.backend import QueuePosition
from devices.virtio.commands import MAX_REASON_CHARS, Refused
from devices.virtio.counters import Counters
from devices.virtio.device import CommandError
from devices.virtio.loop_context import LoopContext
from devices.virtio.queue.worker import QueueWorker
from devices.virtio.saved_state import SavedState
from sys_util import child_log, linux
from sys_util.channel import Channel
from sys_util.crash import crash_report
from sys_util.errors import (
    ChannelClosed,
    ChannelFull,
    GuestError,
    ProtocolError,
    VmmError,
    describe,
)
from sys_util.event_loop import EventLoop
from sys_util.guest_memory import GuestMemory
from sys_util.shared_page import SharedPage
from sys_util.typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Sequence

    from crosvm_py.warden.protocol import Spawn
    from devices.virtio.backend import QueueActivation
    from devices.virtio.device import VirtioDevice
    from jail.plan import JailPlan
    from sys_util import socket
    from sys_util.wire import Message


# The reasons to hold back the callbacks of a device.
_PAUSED: Final = "paused"
_FAILED: Final = "failed"


def run_device(order: Spawn, sock: socket.socket, fds: Sequence[int], jail: JailPlan | None) -> int:
    """Run the device that ``order`` describes; return the exit status.

    ``fds`` are guest memory, the page of counters and then the device's own. This process owns all
    of them.
    """
    channel = Channel(sock, protocol.DEVICE_CODEC)
    try:
        child_log.log_through(channel)
        linux.set_process_name(order.name)
        if jail is not None:
            jail.enter()
        memory = GuestMemory.attach(fds[0], order.regions, huge_pages=order.huge_pages)
        page = SharedPage.attach(fds[1])
        device = build_device(order.kind, order.spec, fds[2:])
        process = _DeviceProcess(channel, device, memory, page)
        linux.report_denied_calls(channel.fileno(), child_log.CALL_DENIED_HEAD)
        engine = sys.modules.get("engine.native")  # a device that can use it has imported it
        if engine is not None:
            engine.report_panics(channel.fileno(), child_log.CRASHED_HEAD)
        if jail is not None:
            jail.load_filter()
        process.run()
    except ChannelClosed:
        return 0
    except VmmError as error:
        child_log.say_crashed(channel, describe(error))
        return EXIT_HOST
    except Exception as error:  # noqa: BLE001 - process entry: report every bug
        child_log.say_crashed(channel, crash_report(error))
        return EXIT_BUG
    return 0


class _DeviceProcess:
    """Turn messages of the vmm and kicks of the driver into calls of the device."""

    def __init__(
        self, channel: Channel, device: VirtioDevice, memory: GuestMemory, page: SharedPage
    ) -> None:
        self._channel = channel
        self._device = device
        self._loop = EventLoop()
        self._room = select.epoll()  # waits for room in the channel
        self._room.register(channel.fileno(), select.EPOLLOUT)
        self._worker = QueueWorker(device, memory, Counters(page.cells))
        self._configuration = Configuration(
            device, self._worker, self._loop, self._say, self._serve_all
        )
        self._context = LoopContext(
            memory,
            self._loop,
            self._worker,
            self._serve_all,
            self._configuration.changed,
            self._give_up_own_queues,
            SavedState(page.cells),
        )
        self._context.ask_for_blocks = lambda *change: self._say(protocol.ChangeBlocks(*change))
        self._first = 0  # changes with each turn of all queues: which of them is first
        self._features = 0
        self._fds: dict[int, tuple[int, int]] = {}  # queue index to kick and call eventfds
        self._again: dict[int, None] = {}  # queues to serve in the next turn, in this order
        self._broken: set[int] = set()  # queues that wait for a reset
        self._listening: set[int] = set()  # queues whose kicks the loop waits for
        device.attach(self._context)

    def run(self) -> None:
        """Say ``Ready`` and serve until the vmm closes the channel."""
        self._say(self._configuration.ready())
        self._loop.add(self._channel.fileno(), self._on_message)
        while True:
            self._loop.run_once(0 if self._again else None)
            for index in tuple(self._again):
                self._serve(index)

    def _on_message(self, _events: int) -> None:
        received = self._channel.receive()
        if received is None:
            return
        message, fds = received
        if isinstance(message, protocol.Order):
            self._say(self._answer(message))
            return
        if isinstance(message, protocol.BlocksChanged):
            self._context.blocks_changed(message.done)
            return
        if isinstance(message, protocol.ConfigTaken):
            self._configuration.taken(message.number)
            return
        if isinstance(message, protocol.Describe):
            self._say(self._describe(message.request_id))
            return
        request_id = self._carry_out(message, fds)
        self._configuration.when_known(lambda: self._say(protocol.Done(request_id)))

    def _say(self, message: Message) -> None:
        """Send a message; if log lines have filled the channel, wait until there is room."""
        while True:
            try:
                self._channel.send(message)
            except ChannelFull:
                self._room.poll()  # no deadlock: the vmm never blocks on us, so it will read
            else:
                return

    def _answer(self, order: protocol.Order) -> protocol.Answer:
        try:
            answer = self._device.command(order.command)
            self._worker.show_engines()
        except CommandError as error:
            answer = Refused(str(error)[:MAX_REASON_CHARS])
        return protocol.Answer(order.request_id, answer)

    def _describe(self, request_id: int) -> protocol.Description:
        seconds = self._loop.next_timer_seconds
        most = protocol.MAX_TIMER_MS
        timer_ms = None if seconds is None else max(-most, min(most, int(seconds * 1000)))
        queues = tuple(
            QueuePosition(index, server, ring, index in self._again)
            for index, (server, ring) in sorted(self._worker.positions().items())
        )
        return protocol.Description(request_id, self._context.held, timer_ms, queues)

    def _carry_out(self, message: Message, fds: list[int]) -> int:
        match message:
            case protocol.Activate(request_id, features, queues):
                self._activate(features, queues, fds)
            case protocol.EnableQueue(request_id, queue):
                self._start(queue, fds)
            case protocol.ResetQueue(request_id, index):
                self._stop(index)
            case protocol.Reset(request_id):
                self._reset()
            case protocol.WriteConfig(request_id, writes):
                self._write_config(writes)
            case protocol.Pause(request_id):
                self._context.hold(_PAUSED)
                self._worker.pause()
            case protocol.Resume(request_id):
                self._context.release(_PAUSED)
                self._worker.resume()
                self._serve_all()
            case protocol.Ping(request_id):
                pass  # ``Done`` is all that it asks for
            case _:
                raise ProtocolError(f"unexpected {type(message).__name__}")
        return request_id

    def _activate(
        self, features: int, queues: Sequence[QueueActivation], fds: Sequence[int]
    ) -> None:
        self._features = features
        self._context.release(_FAILED)
        self._device.activate(features)
        for at, queue in enumerate(queues):
            self._start(queue, fds[2 * at : 2 * at + 2])

    def _reset(self) -> None:
        for index in tuple(self._fds):
            self._stop(index)
        self._configuration.change(self._device.reset)
        self._context.release(_FAILED)

    def _start(self, queue: QueueActivation, fds: Sequence[int]) -> None:
        kick_fd, call_fd = fds
        index = queue.index
        self._fds[index] = (kick_fd, call_fd)
        try:
            activation = queue._replace(kick_fd=kick_fd, call_fd=call_fd)
            self._worker.start_queue(activation, self._features)
        except GuestError as error:
            self._give_up(index, error)
            return
        if self._worker.takes_kicks(index):
            self._loop.add(kick_fd, lambda _events: self._serve(index))
            self._listening.add(index)
        self._again[index] = None

    def _stop(self, index: int) -> None:
        self._worker.stop_queue(index)
        self._again.pop(index, None)
        if index not in self._fds:
            return
        self._stop_listening(index)
        self._broken.discard(index)
        for fd in self._fds.pop(index):
            os.close(fd)

    def _stop_listening(self, index: int) -> None:
        if index in self._listening:
            self._listening.remove(index)
            self._loop.remove(self._fds[index][0])

    def _serve(self, index: int) -> None:
        self._again.pop(index, None)
        try:
            if self._worker.on_kick(index):
                self._again[index] = None
        except GuestError as error:
            if self._worker.is_devices_own(index):
                self._give_up_own_queues(error)
            else:
                self._give_up(index, error)

    def _serve_all(self) -> None:
        """Give every queue a turn; another one is first each time, so that they share limits."""
        order = sorted(index for index in self._fds if index not in self._broken)
        self._first += 1
        for at in range(len(order)):
            self._again[order[(at + self._first) % len(order)]] = None

    def _write_config(self, writes: Sequence[protocol.ConfigWrite]) -> None:
        def write() -> None:
            for offset, data in writes:
                self._device.write_config(offset, data)

        self._configuration.change(write)

    def _give_up_own_queues(self, error: GuestError) -> None:
        """Hold back the device's callbacks until the driver resets it: one of them has failed."""
        self._context.hold(_FAILED)
        for index in self._worker.abandon_own_queues():
            self._give_up(index, error)

    def _give_up(self, index: int, error: GuestError) -> None:
        """Stop listening to a queue, and tell the vmm that the driver must reset the device."""
        self._broken.add(index)
        self._again.pop(index, None)
        self._stop_listening(index)
        self._say(protocol.QueueFailed(index, str(error)[:512]))
