# SPDX-License-Identifier: BSD-3-Clause
"""The facts that all devices of one kind have in common."""

from __future__ import annotations

from sys_util.typing import TYPE_CHECKING, Final, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from devices.virtio.device import VirtioDevice

MIB: Final = 1 << 20

# Why some devices and memory that can grow exclude each other.
NO_GROWTH: Final = (
    "the kernel of the host serves this device (vhost), and it does not learn of memory that is "
    "added later; leave out vhost, or the maximum of the memory"
)

# The ``output_offset`` of kinds without such a field.
NO_OUTPUT: Final = -1


class BrokerKind(NamedTuple):
    """The process beside a device that connects it to sockets of the host."""

    policy_name: str
    module: str  # has run_broker()


class DeviceKind(NamedTuple):
    """One kind of device.

    Args:
        name: names the kind in orders and in the rehearsal of a run.
        policy_name: the seccomp policy of its process.
        module: the module that implements the device; its process needs it.
        build: makes the device from its packed Spec and its descriptors, which it then owns.
        counters: what it counts besides requests and bytes, in the order of their cells.
        is_card: it is a network card, whose cable can be pulled.
        resizable: the first of its own descriptors is a file that can be resized.
        broker: the process that connects it to sockets of the host, if it needs one; the device's
            last descriptor is then the channel to the broker.
        in_kernel: the host's kernel serves its queues. Threads of the kernel that do so count as
            processes of its user.
        output_offset: offset in the configuration of the field where each write is output.
        plain_fields: offset and size of the configuration's fields that keep any value written.
        max_open_files: enough for two eventfds for each of 64 queues, and for its other files.
        max_processes: how many processes its user may have, 0 for this one only.
        threads: how many threads it may start before its filter is loaded.
        removable: a device of the start can be removed while the guest runs.
        max_memory_bytes: limit of its cgroup, for the memory of the process and what the kernel
            uses on its behalf, beside guest memory.
    """

    name: str
    policy_name: str
    module: str
    build: Callable[[bytes, Sequence[int]], VirtioDevice]
    counters: tuple[str, ...] = ()
    is_card: bool = False
    resizable: bool = False
    broker: BrokerKind | None = None
    in_kernel: bool = False
    output_offset: int = NO_OUTPUT
    plain_fields: tuple[tuple[int, int], ...] = ()
    max_open_files: int = 192
    max_processes: int = 0
    threads: int = 0
    removable: bool = False
    max_memory_bytes: int = 320 * MIB

    def preload(self) -> None:
        """Import the modules of the device's process, which cannot import under its filter."""
        from sys_util.modules import load_module

        load_module(self.module)
        if self.broker is not None:
            load_module(self.broker.module)
