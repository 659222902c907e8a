# SPDX-License-Identifier: BSD-3-Clause
"""The common loop: one chain of a queue after the other, each answered before the next."""

from __future__ import annotations

from devices.virtio.counters import BYTES_FROM_GUEST, BYTES_TO_GUEST, REQUESTS
from devices.virtio.queue.chain import ChainError
from sys_util.errors import GuestError
from sys_util.typing import TYPE_CHECKING, Final, Protocol

if TYPE_CHECKING:
    from devices.virtio.counters import Counters
    from devices.virtio.queue.chain import DescriptorChain
    from devices.virtio.queue.split_queue import SplitQueue
    from sys_util.log import Logger

# The bounds of one turn: after it other queues and messages of the vmm are served. The bound in
# bytes limits how long finished requests wait for their interrupt where each of them is large.
MAX_CHAINS_PER_TURN: Final = 256
MAX_BYTES_PER_TURN: Final = 4 << 20


class Gate(Protocol):
    """What decides in the common loop whether a request may be carried out now."""

    def admit(self, queue_index: int, chain: DescriptorChain) -> bool:
        """Return whether the request may be carried out now."""
        ...

    def settle(self, passed: int) -> None:
        """Learn that the admitted request is done; ``passed`` bytes went through its chain."""
        ...


class ChainHandler(Protocol):
    """A device, or the part of it, that answers each request of a queue at once."""

    @property
    def name(self) -> str:
        """The name of the kind, for logs."""
        ...

    @property
    def gate(self) -> Gate | None:
        """What each chain passes before ``handle_chain``, if anything.

        A chain that it does not admit stays in its queue. The device asks for another turn
        (``context.serve_again``) when its gate admits chains again.
        """
        ...

    def handle_chain(self, queue_index: int, chain: DescriptorChain) -> None:
        """Carry out one request and write the answer through ``chain.writer``.

        Raises:
            GuestError: the request makes no sense. The driver gets what was written so far.
        """
        ...


def serve_queue(
    device: ChainHandler,
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
