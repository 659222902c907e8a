# SPDX-License-Identifier: BSD-3-Clause
"""How many reads a disk serves in a second, by the engine and by Python: µs for each.

    python -m tests.bench.dataplane [requests]
    python -m tests.bench.dataplane direct FOLDER [requests]
    python -m tests.bench.dataplane cold FOLDER [requests]

The first command reads page cache. The second one reads the storage of FOLDER with O_DIRECT, in
4 KiB, and shows how many threads of the engine pay. The third one reads it through the page cache,
where nothing is: "waiting" for each read in turn, "ahead" for all of a turn as the engine does, and
with so many threads.

Driver and device share this process, and the driver costs next to nothing: its chains are prepared
once and only offered again. So this is the device's time alone, kick and interrupt included.
"""

from __future__ import annotations

import os
import random
import sys
import tempfile
import time
from pathlib import Path

from devices.virtio.block.device import VIRTIO_BLK_F_FLUSH, Block
from devices.virtio.block.spec import BlockSpec
from devices.virtio.features import VIRTIO_F_VERSION_1, VIRTIO_RING_F_EVENT_IDX
from devices.virtio.features import VIRTIO_RING_F_INDIRECT_DESC as INDIRECT_DESC
from devices.virtio.queue import native
from devices.virtio.queue.worker import QueueWorker
from sys_util.guest_memory import GuestMemory
from tests.support.driver_queue import DriverQueue

IMAGE_BYTES = 16 << 20
COLD_BYTES = 512 << 20
FEATURES = (
    1 << VIRTIO_F_VERSION_1
    | 1 << VIRTIO_RING_F_EVENT_IDX
    | 1 << INDIRECT_DESC
    | 1 << VIRTIO_BLK_F_FLUSH
)


def measure(requests: int, depth: int, length: int, *, indirect: bool, engine: bool) -> float:
    """Return requests a second from page cache with ``depth`` of them waiting at every kick."""
    image = os.memfd_create("image", os.MFD_CLOEXEC)
    os.truncate(image, IMAGE_BYTES)
    os.pwrite(image, os.urandom(1 << 20) * 16, 0)
    device = Block(BlockSpec("image", read_only=True), image, engine=engine)
    return rate(device, image, requests, depth, length, indirect=indirect)


def measure_direct(path: Path, requests: int, depth: int, threads: int | None) -> float:
    """Return requests a second from storage, by Python if ``threads`` is ``None``."""
    image = os.open(path, os.O_RDONLY | os.O_DIRECT | os.O_CLOEXEC)
    spec = BlockSpec("image", read_only=True, direct=True)
    device = Block(spec, image, engine=threads is not None)
    if threads and device.native is not None:
        device.native.start_threads(threads)
    return rate(device, image, requests, depth, 4096, indirect=False)


def measure_cold(path: Path, requests: int, depth: int, how: str) -> float:
    """Return requests a second from storage through an empty page cache."""
    image = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    os.posix_fadvise(image, 0, 0, os.POSIX_FADV_DONTNEED)
    device = Block(BlockSpec("image", read_only=True), image, engine=how != "python")
    if device.native is not None:
        device.native.cached = how == "ahead"
        if how.isdecimal():
            device.native.start_threads(int(how))
    memory = GuestMemory.create([(0, 64 << 20)])
    device.activate(FEATURES)
    worker = QueueWorker(device, memory)
    driver = DriverQueue(memory, 256, heap=1 << 20)
    kick, call = os.eventfd(0, os.EFD_NONBLOCK), os.eventfd(0, os.EFD_NONBLOCK)
    worker.start_queue(driver.activation(0, kick, call), FEATURES)
    seconds = 0.0
    for _ in range(requests // depth):
        for _ in range(depth):
            sector = random.randrange(COLD_BYTES // 4096) * 8
            driver.submit([bytes(8) + sector.to_bytes(8, "little")], [4096, 1])
        driver.publish()
        os.eventfd_write(kick, 1)
        start = time.perf_counter()
        while worker.on_kick(0):
            pass
        seconds += time.perf_counter() - start
        driver.collect()
    for fd in (image, kick, call):
        os.close(fd)
    return requests // depth * depth / seconds


def rate(
    device: Block, image: int, requests: int, depth: int, length: int, *, indirect: bool
) -> float:
    """Return requests a second; close ``image``."""
    memory = GuestMemory.create([(0, 64 << 20)])
    device.activate(FEATURES)
    worker = QueueWorker(device, memory)
    driver = DriverQueue(memory, 256, event_idx=True, heap=1 << 20)
    kick, call = os.eventfd(0, os.EFD_NONBLOCK), os.eventfd(0, os.EFD_NONBLOCK)
    worker.start_queue(driver.activation(0, kick, call), FEATURES)
    heads = []
    for number in range(depth):
        header = bytes(8) + (number * 976 % 30000).to_bytes(8, "little")
        driver.allocate(-driver.allocate(0) % 4096 + 4096 - 16)  # the data is on whole pages
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


def main_direct(folder: str, requests: int) -> None:
    """Print µs for each read by Python, and by the engine with so many threads."""
    counts = (None, 0, 2, 4, 8, 16, 32)
    sys.stdout.write(
        "depth" + "".join(f" {'python' if n is None else n:>8}" for n in counts) + "\n"
    )
    with tempfile.NamedTemporaryFile(dir=folder) as file:
        file.write(os.urandom(1 << 20) * 16)
        file.flush()
        os.fsync(file.fileno())
        for depth in (1, 2, 4, 8, 16, 32, 64):
            rates = dict.fromkeys(counts, 0.0)
            for _ in range(3):
                for n in counts:
                    one = measure_direct(Path(file.name), requests, depth, n)
                    rates[n] = max(rates[n], one)
            told = "".join(f" {1e6 / rates[n]:8.1f}" for n in counts)
            sys.stdout.write(f"{depth:5}{told}\n")


def main_cold(folder: str, requests: int) -> None:
    """Print µs for each read that misses the page cache."""
    kinds = ("python", "waiting", "ahead", "4", "16")
    sys.stdout.write("depth" + "".join(f" {kind:>8}" for kind in kinds) + "\n")
    with tempfile.NamedTemporaryFile(dir=folder) as file:
        for _ in range(COLD_BYTES >> 20):
            file.write(os.urandom(1 << 20))
        file.flush()
        os.fsync(file.fileno())
        for depth in (1, 4, 32):
            rates: dict[str, list[float]] = {kind: [] for kind in kinds}
            for _ in range(5):
                for kind in kinds:
                    rates[kind].append(measure_cold(Path(file.name), requests, depth, kind))
            told = "".join(f" {1e6 / sorted(rates[kind])[2]:8.1f}" for kind in kinds)
            sys.stdout.write(f"{depth:5}{told}\n")


def main() -> None:
    if sys.argv[1:2] == ["cold"]:
        main_cold(sys.argv[2], int(sys.argv[3]) if len(sys.argv) > 3 else 512)
        return
    if sys.argv[1:2] == ["direct"]:
        main_direct(sys.argv[2], int(sys.argv[3]) if len(sys.argv) > 3 else 4_000)
        return
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
