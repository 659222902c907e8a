# SPDX-License-Identifier: BSD-3-Clause
"""Open and check what a run needs, before the warden is forked, so that errors end the run early.

The run owns what is opened here. The warden inherits it, needs none of it and closes it.
"""

from __future__ import annotations

import os
from contextlib import ExitStack

from crosvm_py.console.serial_ports import open_serial_ports
from crosvm_py.end_signals import hold_end_signals, release_end_signals
from crosvm_py.kinds.cgroup import make_vm_cgroup
from crosvm_py.kinds.kind import NO_GROWTH
from crosvm_py.kinds.policies import CONTROL, CONTROL_API, RunPolicies, load_run_policies
from crosvm_py.kinds.table import DEVICE_KINDS, open_devices
from crosvm_py.machine.arch import host_arch
from crosvm_py.machine.core_scheduling import separates_cores
from crosvm_py.machine.slots import boot_slots
from kernel_loader.load import open_initrd, plan_boot
from kvm.limits import NO_VIRTUALIZATION
from kvm.vm import Kvm, host_has_hardware_virtualization
from sys_util.errors import ConfigError
from sys_util.log import get_logger
from sys_util.typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from crosvm_py.config import RunConfig, SerialSpec
    from crosvm_py.console.serial_ports import SerialPorts
    from crosvm_py.kinds.order import DeviceOrder
    from crosvm_py.kinds.policies import Recorded
    from crosvm_py.socket_path import BoundSocket
    from crosvm_py.vmm.kernel_parser import KernelParser
    from crosvm_py.vmm.prepared_kernel import ReadyKernel
    from jail.cgroup import VmCgroup
    from kernel_loader.load import BootPlan

log = get_logger("crosvm.run")

# crosvm, too, passes this to every guest: a panic then ends the VM instead of leaving it hanging.
_BASE_PARAMETERS = "panic=-1"


_ready_kvm: Kvm | None = None


def make_kvm_ready() -> Kvm:
    """Open KVM and make what every VM has, for the one run of this process.

    Raises:
        HostError: the host refuses it.
    """
    global _ready_kvm
    _ready_kvm = kvm = Kvm.open()
    host_arch().make_ready(kvm)
    return kvm


class Preparation(NamedTuple):
    """Everything that a run starts from. ``policies`` is ``None`` without the sandbox."""

    kvm: Kvm
    plan: BootPlan
    devices: tuple[DeviceOrder, ...]
    slots: dict[str, int]  # of each device, by its name
    serial: SerialPorts
    policies: RunPolicies | None
    socket: BoundSocket | None
    api: BoundSocket | None
    cgroup: VmCgroup | None
    separates_cores: bool = False  # core scheduling keeps other tasks off the vCPUs' cores

    @property
    def sockets(self) -> tuple[BoundSocket, ...]:
        """Every socket in the file system that is removed when the VM ends."""
        control = [bound for bound in (self.socket, self.api) if bound is not None and bound.path]
        return (*control, *self.device_sockets)

    @property
    def device_sockets(self) -> tuple[BoundSocket, ...]:
        """The sockets among them that were made for devices."""
        return tuple(made for order in self.devices for made in order.sockets)


def prepare(
    config: RunConfig,
    parser: KernelParser | ReadyKernel,
    stack: ExitStack,
    recorded: Recorded | None = None,
    *,
    rehearsal: bool = False,
    plugs: bool = False,
) -> Preparation:
    """Open and check what the run needs.

    The signals that end a VM are blocked when this returns; the caller releases them once the
    warden has started.

    Args:
        config: what the user asked for.
        parser: the process that reads the kernel meanwhile.
        stack: closes and removes at its end what is opened and made here.
        recorded: set while a policy is recorded.
        rehearsal: only check. Every change to the host is undone by ``stack``. No file or cgroup
            is made, no program started, no socket or FIFO of others opened, and no network
            interface configured.
        plugs: a control process that is there already can plug devices in.

    Raises:
        ConfigError: the user asked for something impossible.
        HostError: the host refuses something.
    """
    separated = separates_cores(config.core_scheduling)
    arch = host_arch()
    kvm = _ready_kvm or Kvm.open()
    stack.callback(kvm.close)
    if not host_has_hardware_virtualization():
        log.warning("%s", NO_VIRTUALIZATION)
    serial = open_serial_ports(_rehearsed(config.serial) if rehearsal else config.serial)
    stack.callback(serial.close)
    plan = _plan_boot(config, parser, serial, stack)
    # From here on files are made that a signal must not leave behind. None of this takes long.
    hold_end_signals()
    stack.callback(release_end_signals)
    # Before passt is started: the vmm must be alone in its cgroup to make others in it.
    cgroup = None if rehearsal else _make_cgroup(config, stack)
    with ExitStack() as failed:  # so that the images are free for the next attempt
        opened = []
        for order in open_devices(config, serial.virtio, rehearsal=rehearsal):
            for fd in order.fds:
                failed.callback(os.close, fd)
            for made in order.sockets:
                stack.callback(made.unlink)
            opened.append(order)
        devices = tuple(opened)
        slots = boot_slots(
            [order.name for order in devices], config.pci_slots, arch.slots(len(config.pci_weights))
        )
        if config.pool_page_bytes:
            from crosvm_py.vmm.huge_page_pool import check_pool

            ranges = arch.ram_ranges(config.memory_bytes)
            check_pool(config.pool_page_bytes, (size_bytes for _, size_bytes in ranges))
        if config.hotplug_bytes:
            _refuse_kernel_devices(devices)
        policies = _policies(config, {order.kind for order in devices}, recorded, plugs=plugs)
        bound = None
        if config.socket is not None:
            from crosvm_py.socket_path import bind_control_socket

            bound = bind_control_socket(config.socket)
            stack.callback(bound.close)
            stack.callback(bound.unlink)
        api = _open_api(config, stack, rehearsal=rehearsal)
        failed.pop_all()
        return Preparation(
            kvm, plan, devices, slots, serial, policies, bound, api, cgroup, separated
        )


def _refuse_kernel_devices(devices: tuple[DeviceOrder, ...]) -> None:
    for order in devices:
        if DEVICE_KINDS[order.kind].in_kernel:
            raise ConfigError(f"{order.name}: {NO_GROWTH}")


def _open_api(config: RunConfig, stack: ExitStack, *, rehearsal: bool) -> BoundSocket | None:
    if config.api_socket is None:
        return None
    from crosvm_py.api_socket import check_packages, open_api_socket

    if rehearsal:  # it would leave the file of the lock behind
        check_packages()
        return None
    return open_api_socket(config.api_socket, stack)


def _rehearsed(specs: tuple[SerialSpec, ...]) -> tuple[SerialSpec, ...]:
    """Check the serial ports for a rehearsal; return specs that open no file of the user."""
    from crosvm_py.console.rehearsal import rehearse_serial_ports

    return rehearse_serial_ports(specs)


def _make_cgroup(config: RunConfig, stack: ExitStack) -> VmCgroup | None:
    cgroup = make_vm_cgroup(config.cgroup, config.max_cpus, sandbox=config.sandbox)
    if cgroup is not None:
        stack.callback(cgroup.remove)
    return cgroup


def _plan_boot(
    config: RunConfig,
    parser: KernelParser | ReadyKernel,
    serial: SerialPorts,
    stack: ExitStack,
) -> BootPlan:
    image = parser.image()
    stack.callback(image.close)
    initrd = None
    if config.initrd is not None:
        initrd = open_initrd(config.initrd, follow=config.initrd not in config.guest_files)
        stack.callback(initrd.close)
    words = [_BASE_PARAMETERS, *serial.kernel_parameters, config.root_parameter(), *config.params]
    cmdline = " ".join(word for word in words if word)
    arch = host_arch()
    memory_map = arch.memory_map(config.memory_bytes, len(config.pci_weights))
    return plan_boot(image, initrd, cmdline, memory_map, arch.boot_layout)


def _policies(
    config: RunConfig, kinds: set[str], recorded: Recorded | None, *, plugs: bool
) -> RunPolicies | None:
    if not config.sandbox:
        log.warning("--disable-sandbox: devices and vmm run unconfined; the guest must be trusted")
        return None
    if config.seccomp_log_failures:
        log.warning("--seccomp-log-failures: denied system calls are logged, not stopped")
    return load_run_policies(
        kinds,
        directory=config.seccomp_policy_dir,
        log_failures=config.seccomp_log_failures,
        recorded=recorded,
        control=CONTROL if plugs else _control_policy(config),
        grows=config.hotplug_bytes > 0,
        reboots=config.reboots,
    )


def _control_policy(config: RunConfig) -> str | None:
    if config.api_socket is not None:
        return CONTROL_API
    return None if config.socket is None else CONTROL
