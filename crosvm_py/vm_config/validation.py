# SPDX-License-Identifier: BSD-3-Clause
"""Check a configuration that fits the schema: what its keys mean together.

Cloud Hypervisor checks the same when a VM boots and when a device is added. Nothing is opened.
"""

from __future__ import annotations

from crosvm_py.vm_config.device_rules import device_problems
from crosvm_py.vm_config.machine_rules import machine_problems, ram_bytes
from crosvm_py.vm_config.pci_rules import pci_problems
from crosvm_py.vm_config.problem import when
from sys_util.typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

    from crosvm_py.vm_config.problem import Problem
    from crosvm_py.vm_config.schema import VmConfig


def problems(config: VmConfig) -> list[Problem]:
    """Return every rule that the configuration breaks. The first decides the status code."""
    return [
        *machine_problems(config),
        *device_problems(config),
        *_balloon(config),
        *pci_problems(config),
    ]


def _balloon(config: VmConfig) -> Iterator[Problem]:
    if config.balloon is not None:
        size, memory = config.balloon.size, ram_bytes(config.memory)
        text = f"{size} is not less than the memory, {memory}"
        yield from when(size >= memory, "balloon.size", text)
