# SPDX-License-Identifier: BSD-3-Clause
"""What every virtio device has to provide, and the loop that serves the queues of most."""

from __future__ import annotations

from devices.virtio.counters import BYTES_FROM_GUEST, BYTES_TO_GUEST, REQUESTS
from devices.virtio.queue.chain import ChainError
from sys_util.errors import GuestError, VmmError
from sys_util.typing import TYPE_CHECKING, ClassVar, Final, Protocol

if TYPE_CHECKING:
    from devices.virtio.backend import QueueActivation
    from devices.virtio.commands import Command
    from devices.virtio.context import DeviceContext
    from devices.virtio.counters import Counters
    from devices.virtio.queue.chain import DescriptorChain
    from devices.virtio.queue.engine_queue import EngineQueue
    from devices.virtio.queue.split_queue import Handover, SplitQueue
    from sys_util.guest_memory import GuestMemory
    from sys_util.log import Logger
    from sys_util.wire import Message

# The bounds of one turn: after it other queues and messages of the vmm are served. The bound in
# bytes limits how long finished requests wait for their interrupt where each of them is large.
MAX_CHAINS_PER_TURN: Final = 256
MAX_BYTES_PER_TURN: Final = 4 << 20


class RequestError(GuestError):
    """A well-formed request that the device will not or cannot perform.

    ``status`` is the code that the guest gets, one of those of its type of device.
    """

    def __init__(self, status: int, reason: str) -> None:
        super().__init__(reason)
        self.status = status


class CommandError(VmmError):
    """A command of the user that the device does not carry out; the text is for the user."""


class Gate(Protocol):
    """What decides in the common loop whether a request may be carried out now."""

    def admit(self, queue_index: int, chain: DescriptorChain) -> bool:
        """Return whether the request may be carried out now."""
        ...

    def settle(self, passed: int) -> None:
        """Learn that the admitted request is done; ``passed`` bytes went through its chain."""
        ...


class VirtioDevice(Protocol):
    """The part of a device that is specific to its kind. It runs in its own process."""

    @property
    def name(self) -> str:
        """The name of the kind, for logs."""
        ...

    @property
    def device_type(self) -> int:
        """The virtio device id (virtio 1.3 §5)."""
        ...

    @property
    def queue_sizes(self) -> tuple[int, ...]:
        """The greatest size of each queue."""
        ...

    @property
    def seccomp_policy(self) -> str:
        """The name of the policy its process runs under."""
        ...

    @property
    def in_order(self) -> bool:
        """Whether every chain is finished before the next one is taken (VIRTIO_F_IN_ORDER)."""
        ...

    @property
    def early_writes(self) -> bool:
        """Whether a driver may write to the configuration before it has negotiated."""
        ...

    def features(self) -> int:
        """Return the device-specific feature bits; the base ones are added for every device."""
        ...

    def config(self) -> bytes:
        """Return the device configuration as it is now."""
        ...

    def write_config(self, offset: int, data: bytes) -> None:
        """Take the driver's write to the device configuration."""
        ...

    def activate(self, features: int) -> None:
        """Learn the negotiated features; the first chain comes after this."""
        ...

    def handle_chain(self, queue_index: int, chain: DescriptorChain) -> None:
        """Carry out one request and write the answer through ``chain.writer``.

        Raises:
            GuestError: the request makes no sense. The driver gets what was written so far.
        """
        ...

    def reset(self) -> None:
        """Forget the driver and everything it negotiated; every queue has stopped."""
        ...

    def start_engine(
        self, memory: GuestMemory, activation: QueueActivation, features: int, start: Handover
    ) -> EngineQueue | None:
        """Return a native server for a queue that ``SplitQueue`` has checked, or None."""
        ...

    @property
    def own_queues(self) -> frozenset[int]:
        """The queues that the device serves itself, through ports and ``on_kick``."""
        ...

    @property
    def gate(self) -> Gate | None:
        """What each chain of the other queues passes before ``handle_chain``, if anything.

        A chain that it does not admit stays in its queue. The device asks for another turn
        (``context.serve_again``) when its gate admits chains again.
        """
        ...

    @property
    def kernel_queues(self) -> frozenset[int]:
        """The queues that the host's kernel serves: it takes the kicks and interrupts itself."""
        ...

    def start_kernel_queue(self, activation: QueueActivation, next_avail: int) -> None:
        """Hand a checked queue to the kernel, which goes on at ``next_avail``."""
        ...

    def stop_kernel_queue(self, index: int) -> None:
        """Take a queue back from the kernel: its memory is not touched after this."""
        ...

    def attach(self, context: DeviceContext) -> None:
        """Take the device's context, once, before the process's filter is loaded.

        What can be made in advance (descriptors, buffers, registrations) is made here.
        """
        ...

    def on_kick(self, index: int) -> bool:
        """Serve one of ``own_queues``, for a bounded time: it started, resumed or got more chains.

        Returns:
            Whether there is more to do at once, which no kick will announce.
        """
        ...

    def pause(self) -> None:
        """Finish what is in flight; when this returns, nothing is and no port holds a chain."""
        ...

    def resume(self) -> None:
        """Go on; a kick of every active queue follows."""
        ...

    def command(self, command: Command) -> Message:
        """Do what the user asks for over the control socket and return the answer.

        Raises:
            CommandError: the device does not do it; the text says why.
        """
        ...


class SimpleDevice:
    """Base of a device that has no events and no commands of its own."""

    name: ClassVar[str]
    early_writes: ClassVar[bool] = False
    own_queues: ClassVar[frozenset[int]] = frozenset()
    kernel_queues: ClassVar[frozenset[int]] = frozenset()
    gate: Gate | None = None

    def start_kernel_queue(self, activation: QueueActivation, next_avail: int) -> None:
        """Do nothing: the kernel serves no queue."""

    def stop_kernel_queue(self, index: int) -> None:
        """Do nothing: the kernel serves no queue."""

    def start_engine(
        self, memory: GuestMemory, activation: QueueActivation, features: int, start: Handover
    ) -> EngineQueue | None:
        return None

    def attach(self, context: DeviceContext) -> None:
        """Do nothing: the device needs no context."""

    def on_kick(self, index: int) -> bool:
        return False

    def pause(self) -> None:
        """Do nothing: between two chains nothing is in flight."""

    def resume(self) -> None:
        """Do nothing: ``pause`` stopped nothing."""

    def command(self, command: Command) -> Message:
        raise CommandError(f"{self.name} devices know no {command.WORD}")


def serve_queue(
    device: VirtioDevice,
    queue_index: int,
    queue: SplitQueue,
    counters: Counters,
    log: Logger,
    max_chains: int | None = None,
) -> bool:
    """Serve one turn of available chains and return whether the driver wants an interrupt.

    Each chain goes back to the driver exactly once, whatever the device does with it. When the turn
    was too short for all of them, ``queue.idle`` is false and no kick will come: serve again. With
    ``max_chains`` this goes on with a turn that an engine has begun.

    Raises:
        QueueError: the ring is unusable; the caller sets DEVICE_NEEDS_RESET.
    """
    pop, add_used, handle_chain = queue.pop, queue.add_used, device.handle_chain
    gate = device.gate
    requests, received, sent = counters.requests, 0, 0
    chains_left, bytes_left = max_chains or MAX_CHAINS_PER_TURN, MAX_BYTES_PER_TURN
    if max_chains is None:
        queue.disable_notification()
    try:
        while chains_left and bytes_left > 0:
            try:
                chain = pop()
            except ChainError as error:
                chains_left -= 1
                counters.count_error()
                log.warning("%s queue %d: %s", device.name, queue_index, error)
                add_used(error.head, 0)
                continue
            if chain is None:
                if not queue.enable_notification():
                    break
                queue.disable_notification()
                continue
            if gate is not None and not gate.admit(queue_index, chain):
                queue.unpop(idle=True)  # the device asks for the next turn
                break
            chains_left -= 1
            offered = chain.reader.remaining
            try:
                handle_chain(queue_index, chain)
            except GuestError as error:
                counters.count_error()
                log.warning("%s queue %d: %s", device.name, queue_index, error)
            taken, written = offered - chain.reader.remaining, chain.writer.written
            add_used(chain.head, written)
            if gate is not None:
                gate.settle(taken + written)
            bytes_left -= taken + written
            requests += 1
            received += taken
            sent += written
    finally:
        queue.publish()
        cells = counters.cells
        counters.requests = cells[REQUESTS] = requests
        counters.bytes_from_guest = received = counters.bytes_from_guest + received
        counters.bytes_to_guest = sent = counters.bytes_to_guest + sent
        cells[BYTES_FROM_GUEST] = received
        cells[BYTES_TO_GUEST] = sent
    return queue.wants_interrupt()
