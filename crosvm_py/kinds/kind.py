# SPDX-License-Identifier: BSD-3-Clause
"""What is known of every device of one kind before the device exists."""

from __future__ import annotations

from sys_util.typing import TYPE_CHECKING, Final, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from devices.virtio.device import VirtioDevice

MIB: Final = 1 << 20

# For a kind whose configuration has no field to which each write is output.
NO_OUTPUT: Final = -1


class BrokerKind(NamedTuple):
    """The process beside a device that connects it to sockets of the host."""

    policy_name: str
    module: str  # has run_broker()


class DeviceKind(NamedTuple):
    """One kind of device.

    Args:
        name: what orders and the rehearsal of a run call it.
        policy_name: the seccomp policy of its process.
        module: where the device is, for its process.
        build: makes the device from its packed Spec and the descriptors, which become its own.
        counters: what it counts besides requests and bytes, in the order of their cells.
        is_card: it is a network card, whose cable can be pulled.
        resizable: the first of its own descriptors is a file that can get another size.
        broker: a process beside it that connects it to sockets of the host, if it needs one; the
            device's last descriptor is the channel to it.
        in_kernel: the host's kernel serves its queues. The kernel's threads on its behalf count as
            processes of its user.
        output_offset: the field of the configuration to which each write is output.
        plain_fields: fields of it, by offset and size, that take whatever a driver writes.
        max_open_files: two eventfds for each of 64 queues, and the process's own.
        max_processes: how many there may be of its user, 0 for none but itself.
        max_memory_bytes: the process's own and the kernel's for it, in a cgroup.
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
    max_memory_bytes: int = 320 * MIB

    def preload(self) -> None:
        """Import what the device's process needs, so that it never has to."""
        from importlib import import_module

        import_module(self.module)
        if self.broker is not None:
            import_module(self.broker.module)
