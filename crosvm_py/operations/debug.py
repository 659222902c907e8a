# SPDX-License-Identifier: BSD-3-Clause
"""Answer questions of people who debug a hang, without disturbing anything that runs.

The rings are read from guest memory, eventfds are polled but not read, and a device process reports
its own state if it still answers.
"""

from __future__ import annotations

import os
import time

from crosvm_py.machine.vcpu_places import find_places
from crosvm_py.operations.devices import find_device, wait_ms
from crosvm_py.operations.operation import operation
from crosvm_py.requests.debug import (
    DeviceDump,
    DumpDevice,
    DumpVm,
    QueueDump,
    RingWords,
    VmDump,
)
from crosvm_py.requests.pending import Pending
from crosvm_py.vmm.link import Contact
from devices.virtio.counters import waiting_until
from sys_util.errors import GuestAddressError
from sys_util.typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from crosvm_py.operations.operation import RunningVm
    from crosvm_py.vmm.device_proxy import DeviceProcess
    from devices.virtio.backend import DeviceWords, TransportQueue
    from sys_util.guest_memory import GuestMemory

# A busy process answers after its present turn. If it hangs, we answer without its part.
ANSWER_SECONDS: Final = 1.0


@operation(DumpVm)
def dump_vm(vm: RunningVm, _request: DumpVm) -> VmDump:
    """Return where the vCPUs are."""
    return VmDump(os.getpid(), find_places(vm.vcpus))


@operation(DumpDevice)
def dump_device(vm: RunningVm, request: DumpDevice) -> Pending:
    """Return the state of a device; the answer waits up to ``ANSWER_SECONDS`` for its process.

    Raises:
        ConfigError: there is no such device.
    """
    device = find_device(vm.supervisor.devices, request.device)
    pending = Pending()

    def answer(words: DeviceWords | None) -> None:
        pending.complete(_dump(device, vm.machine.memory, words))

    link = device.link
    if link is None:
        answer(None)
    else:
        link.describe(ANSWER_SECONDS, answer)
    return pending


def _dump(device: DeviceProcess, memory: GuestMemory, words: DeviceWords | None) -> DeviceDump:
    link = device.link
    contact = Contact(0.0, 0, 0.0) if link is None else link.contact
    transport = device.describe_transport()
    until, now_ns = waiting_until(device.cells), time.monotonic_ns()
    queues = () if transport is None else transport.queues
    return DeviceDump(
        name=device.name,
        pid=device.pid,
        state=device.status.word,
        alive=device.is_open,
        silent_ms=int(1000 * contact.silent_seconds),
        unanswered=contact.unanswered,
        oldest_ms=int(1000 * contact.oldest_seconds),
        transport=None if transport is None else transport._replace(queues=()),
        queues=tuple(
            QueueDump(queue, _read_ring(memory, queue), wait_ms(until.get(at, 0) - now_ns))
            for at, queue in enumerate(queues)
        ),
        words=words,
    )


def _read_ring(memory: GuestMemory, queue: TransportQueue) -> RingWords | None:
    """Return the fields of an enabled queue's rings, or None if they are outside of memory."""
    if not queue.enabled:
        return None
    avail, used, size = queue.avail_ring, queue.used_ring, queue.size
    places = (avail, avail + 2, avail + 4 + 2 * size, used, used + 2, used + 4 + 8 * size)
    try:
        return RingWords(*(int.from_bytes(memory.read(gpa, 2), "little") for gpa in places))
    except GuestAddressError:
        return None
