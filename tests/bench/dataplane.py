# SPDX-License-Identifier: BSD-3-Clause
"""How many reads from page cache a disk serves in a second, by the engine and by Python.

    python -m tests.bench.dataplane [requests]

Driver and device share this process, and the driver costs next to nothing: its chains are prepared
once and only offered again. So this is the device's time alone, kick and interrupt included.
"""

from __future__ import annotations

import os
import sys
import time

from devices.virtio.block import native
from devices.virtio.block.device import VIRTIO_BLK_F_FLUSH, Block
from devices.virtio.block.image import BlockSpec
from devices.virtio.features import VIRTIO_F_VERSION_1, VIRTIO_RING_F_EVENT_IDX
from devices.virtio.features import VIRTIO_RING_F_INDIRECT_DESC as INDIRECT_DESC
from devices.virtio.queue.worker import QueueWorker
from sys_util.guest_memory import GuestMemory
from tests.support.driver_queue import DriverQueue

IMAGE_BYTES = 16 << 20
FEATURES = (
    1 << VIRTIO_F_VERSION_1
    | 1 << VIRTIO_RING_F_EVENT_IDX
    | 1 << INDIRECT_DESC
    | 1 << VIRTIO_BLK_F_FLUSH
)


def measure(requests: int, depth: int, length: int, *, indirect: bool, engine: bool) -> float:
    """Return requests a second with ``depth`` of them waiting at every kick."""
    memory = GuestMemory.create([(0, 64 << 20)])
    image = os.memfd_create("image", os.MFD_CLOEXEC)
    os.truncate(image, IMAGE_BYTES)
    os.pwrite(image, os.urandom(1 << 20) * 16, 0)
    device = Block(BlockSpec("image", read_only=True), image, engine=engine)
    device.activate(FEATURES)
    worker = QueueWorker(device, memory)
    driver = DriverQueue(memory, 256, event_idx=True, heap=1 << 20)
    kick, call = os.eventfd(0, os.EFD_NONBLOCK), os.eventfd(0, os.EFD_NONBLOCK)
    worker.start_queue(driver.activation(0, kick, call), FEATURES)
    heads = []
    for number in range(depth):
        header = bytes(8) + (number * 977 % 30000).to_bytes(8, "little")
        heads.append(driver.submit([header], [length, 1], indirect=indirect).head)
    while worker.on_kick(0):
        pass
    rounds = requests // depth
    start = time.perf_counter()
    for _ in range(rounds):
        for head in heads:
            driver.stage(head)
        driver.set_used_event(driver.avail_idx - 1)
        driver.publish()
        os.eventfd_write(kick, 1)
        while worker.on_kick(0):
            pass
    seconds = time.perf_counter() - start
    if driver.used_idx != driver.avail_idx:
        raise RuntimeError("the device lost requests")
    for fd in (image, kick, call):
        os.close(fd)
    return rounds * depth / seconds


def main() -> None:
    requests = int(sys.argv[1]) if len(sys.argv) > 1 else 50_000
    servers = {"engine": True, "python": False} if native.IS_BUILT else {"python": False}
    head = "".join(f" {name + ' µs':>10}" for name in servers)
    sys.stdout.write(f"{'bytes':>8} {'depth':>6} {'chain':>9}{head}\n")
    for length in (512, 4096, 65536):
        for depth in (1, 4, 32):
            for indirect in (False, True):
                if depth * 3 > 256:
                    continue
                # In turn, so that what else the machine does meets both.
                rates = dict.fromkeys(servers, 0.0)
                for _ in range(3):
                    for name, engine in servers.items():
                        rate = measure(requests, depth, length, indirect=indirect, engine=engine)
                        rates[name] = max(rates[name], rate)
                kind = "indirect" if indirect else "direct"
                told = "".join(f" {1e6 / rates[name]:10.2f}" for name in servers)
                sys.stdout.write(f"{length:8} {depth:6} {kind:>9}{told}\n")


if __name__ == "__main__":
    main()
