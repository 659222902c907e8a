# SPDX-License-Identifier: BSD-3-Clause
"""Which side a queue waits for, in one line, found from guest memory, transport and device.

The numbers in a dump may be of different moments. If a kick looks lost in one dump, it may still
arrive; if the next dump is the same, it is lost.
"""

from __future__ import annotations

from sys_util.typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from crosvm_py.requests.debug import DeviceDump, QueueDump
    from devices.virtio.backend import QueuePosition, RingPosition

EVENT_IDX: Final = 29  # VIRTIO_RING_F_EVENT_IDX
_NEEDS_RESET: Final = 64
_NO_INTERRUPT: Final = 1  # VIRTQ_AVAIL_F_NO_INTERRUPT


def verdict(device: DeviceDump, index: int) -> str:
    """Return which side queue ``index`` waits for, and for what."""
    queue = device.queues[index]
    transport = device.transport
    if transport is None or not queue.transport.enabled:
        return "not set up by the driver"
    if transport.status & _NEEDS_RESET:
        return "waits for the driver: it has to reset the device"
    if queue.transport.resetting:
        return "waits for the device: a reset of the queue is under way"
    if device.words is None:
        return f"waits for the device: its process {_silence(device)}"
    at = next((each for each in device.words.queues if each.index == index), None)
    if at is None:
        return "waits for the device: it has not started the queue"
    return _of_device(device, queue, at)


def _silence(device: DeviceDump) -> str:
    return "does not answer" if device.alive else "is gone, another one is to come"


def _of_device(device: DeviceDump, queue: QueueDump, at: QueuePosition) -> str:
    if at.server == "nobody":
        return "waits for the driver: it made the queue unusable and has to reset the device"
    if at.server == "kernel":
        return "served by the host's kernel, which tells nothing"
    if device.words is not None and device.words.held:
        return f"waits for the host: the device is held ({', '.join(device.words.held)})"
    if queue.limit_wait_ms:
        return f"waits for the limit of the device, {queue.limit_wait_ms / 1000:.1f} s still"
    if queue.ring is None or at.ring is None:
        return "not known: no ring in guest memory"
    offered = queue.ring.avail_idx - at.ring.next_avail & 0xFFFF
    taken = at.ring.next_avail - at.ring.next_used & 0xFFFF
    if offered and (text := _of_offered(queue, at, offered)):
        return text
    if taken and at.server.startswith("port"):
        return f"waits for the host: {taken} chains are taken and kept until there is use for them"
    if taken:
        return f"waits for the device: {taken} chains are taken and not given back"
    return _of_used(device, queue, at.ring)


def _of_offered(queue: QueueDump, at: QueuePosition, offered: int) -> str:
    """Return which side has to act on chains that the driver has offered, or ""."""
    chains = f"{offered} chains are offered"
    if at.has_more:
        return f"waits for the device: {chains}, it serves them by itself"
    if queue.transport.kicked:
        return f"waits for the device: {chains} and it was kicked"
    if queue.transport.kick_held:
        return f"waits for the driver: {chains} and a kick, but bus mastering is off"
    if at.server.startswith("port"):
        return f"waits for the host: {chains} for what may come"
    return f"waits for nobody: {chains} and no kick is on its way; if it stays so, one was lost"


def _of_used(device: DeviceDump, queue: QueueDump, ring: RingPosition) -> str:
    """Return which used chains the driver has not seen yet, or that the queue is idle."""
    if ring.next_used != ring.published:
        count = ring.next_used - ring.published & 0xFFFF
        return f"waits for the device: {count} chains are given back and not shown"
    words = queue.ring
    transport = device.transport
    if words is None or transport is None:
        return "not known: no ring in guest memory"
    vectors = transport.vectors
    vector = vectors[queue.transport.vector] if queue.transport.vector < len(vectors) else None
    if vector is not None and vector.signalled and not vector.attached:
        return "waits for the driver: an interrupt is pending, its vector is masked"
    if vector is not None and vector.signalled:
        return "waits for KVM: an interrupt is signalled; if it stays so, KVM does not deliver it"
    if transport.driver_features >> EVENT_IDX & 1:
        unseen = words.used_idx - words.used_event & 0xFFFF
        if 0 < unseen <= queue.transport.size:
            return f"waits for the driver: {unseen} used chains since the one it asked to hear of"
    elif words.avail_flags & _NO_INTERRUPT:
        return "idle: nothing is to be done, and the driver wants no interrupts"
    return "idle: nothing is to be done"
