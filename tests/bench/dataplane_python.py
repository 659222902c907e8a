# SPDX-License-Identifier: BSD-3-Clause
"""How many 4 KiB reads from page cache the Python data plane serves in a second, and where.

    python -m tests.bench.dataplane_python [requests]

Driver and device share this process, and the driver costs next to nothing: its chains are prepared
once and only offered again. So this is the device's time alone, kick and interrupt included.
"""

from __future__ import annotations

import os
import sys
import time

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


def measure(requests: int, depth: int, length: int, *, indirect: bool) -> float:
    """Return requests a second with ``depth`` of them waiting at every kick."""
    memory = GuestMemory.create([(0, 64 << 20)])
    image = os.memfd_create("image", os.MFD_CLOEXEC)
    os.truncate(image, IMAGE_BYTES)
    os.pwrite(image, os.urandom(1 << 20) * 16, 0)
    device = Block(BlockSpec("image", read_only=True), image)
    device.activate(FEATURES)
    worker = QueueWorker(device, memory)
    driver = DriverQueue(memory, 256, event_idx=True, heap=1 << 20)
    kick, call = os.eventfd(0, os.EFD_NONBLOCK), os.eventfd(0, os.EFD_NONBLOCK)
    worker.start_queue(driver.activation(0, kick, call), FEATURES)
    heads = []
    for number in range(depth):
        header = bytes(8) + (number * 977 % 30000).to_bytes(8, "little")
        heads.append(driver.submit([header], [length, 1], indirect=indirect).head)
    worker.on_kick(0)
    rounds = requests // depth
    start = time.perf_counter()
    for _ in range(rounds):
        for head in heads:
            driver.stage(head)
        driver.set_used_event(driver.avail_idx - 1)
        driver.publish()
        os.eventfd_write(kick, 1)
        worker.on_kick(0)
    seconds = time.perf_counter() - start
    if driver.used_idx != driver.avail_idx:
        raise RuntimeError("the device lost requests")
    for fd in (image, kick, call):
        os.close(fd)
    return rounds * depth / seconds


def main() -> None:
    requests = int(sys.argv[1]) if len(sys.argv) > 1 else 50_000
    sys.stdout.write(f"{'bytes':>8} {'depth':>6} {'chain':>9} {'requests/s':>12} {'µs each':>8}\n")
    for length in (512, 4096, 65536):
        for depth in (1, 4, 32):
            for indirect in (False, True):
                if depth * 3 > 256:
                    continue
                rate = max(measure(requests, depth, length, indirect=indirect) for _ in range(3))
                kind = "indirect" if indirect else "direct"
                sys.stdout.write(
                    f"{length:8} {depth:6} {kind:>9} {rate:12,.0f} {1e6 / rate:8.2f}\n"
                )


if __name__ == "__main__":
    main()
