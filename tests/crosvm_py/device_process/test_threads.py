# SPDX-License-Identifier: BSD-3-Clause
"""The threads of a disk with ``direct``: each is confined as its process is, and ends with it."""

from __future__ import annotations

import os
import signal
import struct
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from crosvm_py.care import ALWAYS, Care
from crosvm_py.kinds.block import BLOCK
from devices.virtio.block.spec import BlockSpec
from devices.virtio.queue import native
from disk.image import open_image
from sys_util.errors import ConfigError
from tests.crosvm_py.device_rig import DeviceRig, Transport
from tests.support.driver_queue import align

if TYPE_CHECKING:
    from collections.abc import Iterator

    from crosvm_py.vmm.device_proxy import DeviceProcess
    from tests.crosvm_py.device_rig import RigQueue

pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(not native.IS_BUILT, reason="the engine is not built here"),
]

PAGE = 4096
PAGES = 64


@pytest.fixture
def rig() -> Iterator[DeviceRig]:
    with DeviceRig(sandbox=True, care=Care(ALWAYS, 10.0)) as rig:
        yield rig


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "disk.img"
    path.write_bytes(b"".join(bytes([page]) * PAGE for page in range(PAGES)))
    try:
        os.close(open_image(BlockSpec(str(path), direct=True)))
    except ConfigError:
        pytest.skip("O_DIRECT does not work there")
    return path


def fields_of_threads(device: DeviceProcess) -> list[dict[str, str]]:
    """Return what the kernel says of each thread of the process (proc_pid_status(5))."""
    texts = [path.read_text() for path in Path(f"/proc/{device.pid}/task").glob("*/status")]
    return [dict(line.split(":\t", 1) for line in text.splitlines()) for text in texts]


def submit(queue: RigQueue, pages: range) -> None:
    """Ask for pages, each to be read into aligned memory."""
    for page in pages:
        at = queue.ring.allocate(0)
        queue.ring.allocate(align(at, PAGE) + PAGE - 16 - at)
        queue.submit([struct.pack("<IIQ", 0, 0, page * 8)], [PAGE, 1])


def answers(rig: DeviceRig, queue: RigQueue) -> list[bytes]:
    """Wait for all answers, in the order of the used ring."""
    rig.until(lambda: queue.ring.used_idx == queue.ring.avail_idx)
    return [data for _, _, data in queue.ring.collect()]


EXPECTED = [bytes([page]) * PAGE + b"\0" for page in range(PAGES)]


def test_every_thread_has_the_walls_of_the_process(rig: DeviceRig, image: Path) -> None:
    threads = fields_of_threads(rig.block(image, direct=True))
    assert len(threads) == 1 + BLOCK.threads
    walls = ("Uid", "Gid", "NoNewPrivs", "Seccomp", "Seccomp_filters", "CapPrm", "CapBnd", "NStgid")
    assert len({tuple(fields.get(name) for name in walls) for fields in threads}) == 1
    assert (threads[0]["NoNewPrivs"], threads[0]["Seccomp"]) == ("1", "2")
    assert int(threads[0]["CapPrm"], 16) == int(threads[0]["CapBnd"], 16) == 0


def test_process_can_start_no_more_threads(rig: DeviceRig, image: Path) -> None:
    device = rig.block(image, direct=True)
    limits = Path(f"/proc/{device.pid}/limits").read_text()
    (line,) = (line for line in limits.splitlines() if line.startswith("Max processes"))
    assert line.split()[2:4] == ["0", "0"]


def test_disk_without_direct_has_one_thread(rig: DeviceRig, image: Path) -> None:
    assert len(fields_of_threads(rig.block(image))) == 1


def test_threads_serve_under_the_filter_and_end_with_their_process(
    rig: DeviceRig, image: Path
) -> None:
    device = rig.block(image, direct=True)
    (queue,) = rig.activate(device)
    for first in range(0, PAGES, 4):
        submit(queue, range(first, first + 4))
        assert answers(rig, queue) == EXPECTED[first : first + 4]
    device.close()
    assert rig.is_gone(device)
    assert rig.deaths == []


def test_requests_in_flight_at_a_kill_are_answered_once_and_in_order(
    rig: DeviceRig, image: Path
) -> None:
    device = rig.block(image, direct=True)
    (queue,) = rig.activate(device)
    device.events = Transport([queue])
    for _ in range(4):
        for first in range(0, PAGES, 4):
            submit(queue, range(first, first + 4))
            if first == 32:
                os.kill(device.pid, signal.SIGKILL)
            assert answers(rig, queue) == EXPECTED[first : first + 4]
        rig.until(lambda: device.status.ready)
    assert device.status.restarts == 4
    assert len(fields_of_threads(device)) == 1 + BLOCK.threads
