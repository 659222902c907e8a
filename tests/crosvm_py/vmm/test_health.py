# SPDX-License-Identifier: BSD-3-Clause
"""Health checks: which devices are pinged, and which are ended because they hang."""

from __future__ import annotations

import os

import pytest

from crosvm_py.device_process import protocol as device_protocol
from crosvm_py.kinds.net import VHOST_NET
from devices.virtio.counters import KICKS
from tests.crosvm_py.hostile_device import HostileDevice, queue


class Patient:
    """A device with one queue, whose health is checked."""

    def __init__(self, device: HostileDevice) -> None:
        self.device = device
        self.cells = [0] * 16
        device.host.cells = self.cells

    def look(self, timeout_seconds: float = 0.0) -> None:
        self.device.host.check_health(timeout_seconds)


@pytest.fixture
def patient(device: HostileDevice) -> Patient:
    return Patient(device)


def test_idle_device_is_asked_for_a_sign_of_life_once(patient: Patient) -> None:
    patient.look()
    patient.look()
    asked = patient.device.take()[0]
    assert asked == device_protocol.Ping(1)
    patient.device.send(device_protocol.Done(1))
    patient.device.turn()
    patient.look()
    assert patient.device.take()[0] == device_protocol.Ping(2)


def test_kick_that_nobody_serves_ends_the_device(patient: Patient) -> None:
    with queue(0) as one:
        patient.device.host.activate(1 << 32, [one])
        os.eventfd_write(one.kick_fd, 1)
        patient.look()
        assert patient.device.failures == 0
        patient.look()
        assert patient.device.verdict == "serves no queue for 0 s"


def test_device_that_serves_other_kicks_meanwhile_lives(patient: Patient) -> None:
    with queue(0) as one:
        patient.device.host.activate(1 << 32, [one])
        for served in range(3):
            os.eventfd_write(one.kick_fd, 1)
            patient.cells[KICKS] = served
            patient.look()
        os.eventfd_read(one.kick_fd)
        patient.look()
        os.eventfd_write(one.kick_fd, 1)
        patient.look()
    assert not patient.device.verdict


@pytest.mark.parametrize("why", ["needs reset", "kernel's", "stopped", "reset"])
def test_kick_that_nobody_has_to_serve_is_none(patient: Patient, why: str) -> None:
    host = patient.device.host
    with queue(0) as one:
        host.activate(1 << 32, [one])
        os.eventfd_write(one.kick_fd, 1)
        if why == "needs reset":
            host.status.needs_reset = True
        elif why == "kernel's":
            host.kind = VHOST_NET
        elif why == "stopped":
            host.reset_queue(0)
        else:
            host.reset()
        patient.look()
        patient.look()
    assert not patient.device.verdict
