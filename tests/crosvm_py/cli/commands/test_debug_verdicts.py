# SPDX-License-Identifier: BSD-3-Clause
"""Which side a queue waits for, according to a dump."""

from __future__ import annotations

import pytest

from crosvm_py.cli.commands.debug_verdicts import verdict
from crosvm_py.requests.debug import DeviceDump, QueueDump, RingWords
from devices.pci.msix import VectorState
from devices.virtio.backend import (
    DeviceWords,
    QueuePosition,
    RingPosition,
    TransportQueue,
    TransportState,
)

QUEUE = TransportQueue(8, True, False, 0, False, 0x1000, 0x2000, 0x3000, False, False, True)
RING = RingWords(0, 5, 5, 0, 5, 5)
POSITION = QueuePosition(0, "device", RingPosition(5, 5, 5, 5, 5, True), False)
VECTOR = VectorState(False, True, False, 0xFEE0_0000, 0x41)
TRANSPORT = TransportState(
    0xF, 1 << 32 | 1 << 29, True, True, False, 0xFFFF, 0, False, False, (), (VECTOR,)
)
IDLE = DeviceDump(
    "block:0",
    41,
    "active",
    True,
    0,
    0,
    0,
    TRANSPORT,
    (QueueDump(QUEUE, RING, 0),),
    DeviceWords((), None, (POSITION,)),
)


def changed(
    *,
    queue: TransportQueue = QUEUE,
    ring: RingWords | None = RING,
    at: QueuePosition | None = POSITION,
    transport: TransportState | None = TRANSPORT,
    vector: VectorState = VECTOR,
    limit_wait_ms: int = 0,
    held: tuple[str, ...] = (),
    silent: bool = False,
    alive: bool = True,
) -> DeviceDump:
    words = DeviceWords(held, None, () if at is None else (at,))
    return DeviceDump(
        *("block:0", 41, "active", alive, 0, 0, 0),
        transport if transport is None else transport._replace(vectors=(vector,)),
        (QueueDump(queue, ring, limit_wait_ms),),
        None if silent else words,
    )


OFFERED = RING._replace(avail_idx=(5 + 3) & 0xFFFF)
POLLED = TRANSPORT._replace(driver_features=1 << 32)

CASES = [
    pytest.param(changed(transport=None), "not set up", id="no-transport"),
    pytest.param(changed(queue=QUEUE._replace(enabled=False)), "not set up", id="disabled"),
    pytest.param(
        changed(transport=TRANSPORT._replace(status=0x4F)),
        "waits for the driver: it has to reset the device",
        id="needs-reset",
    ),
    pytest.param(
        changed(queue=QUEUE._replace(resetting=True)),
        "waits for the device: a reset of the queue",
        id="queue-reset",
    ),
    pytest.param(changed(silent=True), "its process does not answer", id="silent"),
    pytest.param(changed(silent=True, alive=False), "its process is gone", id="gone"),
    pytest.param(changed(at=None), "has not started the queue", id="not-started"),
    pytest.param(
        changed(at=POSITION._replace(server="nobody", ring=None)),
        "waits for the driver: it made the queue unusable",
        id="broken",
    ),
    pytest.param(changed(at=POSITION._replace(server="kernel")), "the host's kernel", id="vhost"),
    pytest.param(changed(held=("paused",)), "the device is held (paused)", id="paused"),
    pytest.param(
        changed(limit_wait_ms=2500, ring=OFFERED), "limit of the device, 2.5 s", id="limit"
    ),
    pytest.param(changed(ring=None), "not known", id="no-memory"),
    pytest.param(
        changed(ring=OFFERED, at=POSITION._replace(has_more=True)),
        "waits for the device: 3 chains are offered, it serves",
        id="busy",
    ),
    pytest.param(
        changed(ring=OFFERED, queue=QUEUE._replace(kicked=True)),
        "waits for the device: 3 chains are offered and it was kicked",
        id="kicked",
    ),
    pytest.param(
        changed(ring=OFFERED, queue=QUEUE._replace(kick_held=True)), "bus mastering", id="master"
    ),
    pytest.param(
        changed(ring=OFFERED, at=POSITION._replace(server="port")),
        "waits for the host: 3 chains",
        id="buffers-of-a-port",
    ),
    pytest.param(changed(ring=OFFERED), "waits for nobody: 3 chains", id="lost-kick"),
    pytest.param(
        changed(at=POSITION._replace(ring=RingPosition(5, 5, 3, 3, 3, False))),
        "waits for the device: 2 chains are taken",
        id="taken",
    ),
    pytest.param(
        changed(at=POSITION._replace(server="port", ring=RingPosition(5, 5, 4, 4, 4, True))),
        "waits for the host: 1 chains are taken and kept",
        id="kept-by-a-port",
    ),
    pytest.param(
        changed(at=POSITION._replace(ring=RingPosition(5, 5, 5, 4, 4, False))),
        "waits for the device: 1 chains are given back and not shown",
        id="not-shown",
    ),
    pytest.param(
        changed(vector=VECTOR._replace(signalled=True, attached=False, masked=True)),
        "waits for the driver: an interrupt is pending, its vector is masked",
        id="masked",
    ),
    pytest.param(changed(vector=VECTOR._replace(signalled=True)), "waits for KVM", id="irqfd"),
    pytest.param(
        changed(ring=RING._replace(used_event=1)),
        "waits for the driver: 4 used chains",
        id="driver-behind",
    ),
    pytest.param(
        changed(ring=RING._replace(used_event=6)), "idle: nothing is to be done", id="ahead"
    ),
    pytest.param(
        changed(ring=RING._replace(avail_flags=1), transport=POLLED), "wants no interrupts", id="x"
    ),
    pytest.param(changed(transport=POLLED), "idle: nothing is to be done", id="idle"),
    pytest.param(IDLE, "idle: nothing is to be done", id="idle-with-events"),
    pytest.param(
        changed(queue=QUEUE._replace(vector=0xFFFF)), "idle: nothing is to be done", id="no-vector"
    ),
]


@pytest.mark.parametrize(("device", "expected"), CASES)
def test_queue_waits_for_whom_it_should(device: DeviceDump, expected: str) -> None:
    assert expected in verdict(device, 0)


def test_indices_wrap() -> None:
    wrapped = RingPosition(1, 0xFFFE, 0xFFFE, 0xFFFE, 0xFFFE, True)
    device = changed(
        ring=RingWords(0, 1, 0xFFFE, 0, 0xFFFE, 0xFFFE),
        at=POSITION._replace(ring=wrapped),
        queue=QUEUE._replace(kicked=True),
    )
    assert "3 chains are offered" in verdict(device, 0)
