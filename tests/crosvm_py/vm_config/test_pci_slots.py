# SPDX-License-Identifier: BSD-3-Clause
"""Segments and slots that a client asks for are judged in bounded time, however many there are."""

from __future__ import annotations

import msgspec

from crosvm_py.config import MAX_PCI_SEGMENTS
from crosvm_py.vm_config import unsupported
from crosvm_py.vm_config.pci_slots import slot_problems
from crosvm_py.vm_config.schema import VmConfig


def test_no_more_segments_are_looked_at_than_there_can_be() -> None:
    asked = {
        "payload": {"kernel": "/k"},
        "platform": {"num_pci_segments": (1 << 16) - 1},
        "pci_segments": [{"pci_segment": 0, "mmio32_aperture_weight": (1 << 32) - 1}],
    }
    found = list(slot_problems(msgspec.convert(asked, VmConfig)))
    places = [problem.place for problem in found]
    assert places[0] == "platform.num_pci_segments"
    assert places[1:] == ["pci_segments"] * (MAX_PCI_SEGMENTS - 1)


def test_defaults_are_those_of_each_class() -> None:
    config = msgspec.convert({"payload": {"kernel": "/k"}}, VmConfig)
    assert list(unsupported.unsupported(config)) == []
    assert unsupported._default(config, "platform") is None
