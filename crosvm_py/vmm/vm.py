# SPDX-License-Identifier: BSD-3-Clause
"""One virtual machine at run time: how it is built, runs, ends and is taken apart."""

from __future__ import annotations

import os
import threading

from crosvm_py.care import Care
from crosvm_py.end_signals import handle_end_signals
from crosvm_py.exit_status import VmExit
from crosvm_py.kinds.console import CONSOLE
from crosvm_py.leaving import expect_filter
from crosvm_py.machine.arch import host_arch
from crosvm_py.machine.board import MachineEvents
from crosvm_py.machine.core_scheduling import pin, take_core
from crosvm_py.vmm.supervisor import Supervisor
from jail.plan import confine_vmm, load_filter
from sys_util import signal
from sys_util.event_loop import EventLoop
from sys_util.guest_memory import GuestMemory
from sys_util.log import get_logger
from sys_util.typing import TYPE_CHECKING, Final, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable

    from crosvm_py.config import RunConfig
    from crosvm_py.machine.vcpu import VcpuSet
    from crosvm_py.machine.vcpu_exit import VmExitReason
    from crosvm_py.vmm.plugging import Plugging
    from crosvm_py.vmm.preparation import Preparation
    from crosvm_py.vmm.reboot import Rebooting
    from crosvm_py.vmm.warden_proxy import WardenProcess
    from seccomp import Policy

log = get_logger("crosvm.vm")

# The most time to stop the vCPUs. They leave the guest at once, unless a bug of ours blocks them.
_STOP_SECONDS: Final = 5.0


class Closing(Protocol):
    """An object that the VM closes at its end."""

    def close(self) -> None:
        """Close it."""


class VirtualMachine:
    """A VM between the fork of its warden and the end of its last process."""

    def __init__(
        self,
        config: RunConfig,
        prepared: Preparation,
        warden: WardenProcess,
        serve_control: Callable[[VirtualMachine, VcpuSet], Closing] | None,
    ) -> None:
        """Make a VM that does not run yet, and ask for its devices.

        ``serve_control`` is called before the vCPUs run, and what it returns is closed with the VM;
        ``None`` if no client can ask for anything.
        """
        self._config = config
        self._serve_control = serve_control
        self._prepared = prepared
        self.loop = EventLoop()
        self._exit: VmExit | None = None
        self._panicked = False
        # Called in the loop when the guest has powered off; without it the VM ends then.
        self.on_power_off: Callable[[], None] | None = None
        self.on_panic: Callable[[], None] = lambda: None  # called by a vCPU's thread
        self._vcpus: VcpuSet | None = None
        self._control: Closing | None = None
        self.plugging: Plugging | None = None
        self.dumper: Closing | None = None  # what has to be closed first: a dump may be under way
        self.rebooting: Rebooting | None = None  # a reset then boots the guest again
        arch = host_arch()
        # Where nobody can ask for more, there is never more.
        can_grow = serve_control is not None or config.has_virtio_mem
        hot_bytes = config.hotplug_bytes if can_grow else 0
        self._memory = GuestMemory.create(
            arch.ram_ranges(config.memory_bytes),
            huge_pages=config.huge_pages,
            pool_page_bytes=config.pool_page_bytes,
            hot_ranges=arch.hot_ranges(
                config.memory_bytes, hot_bytes, by_blocks=config.has_virtio_mem
            ),
        )
        lock = threading.RLock()
        offset = 0
        for zone in config.zones:
            if zone.host_node is not None:
                self._memory.bind(offset, zone.size_bytes, zone.host_node)
            offset += zone.size_bytes
        if config.prefault:
            self._memory.populate()
        self.supervisor = Supervisor(
            self.loop,
            lock,
            warden,
            self._on_device_death,
            Care(config.device_restarts, config.device_timeout_seconds),
        )
        # First, because their processes start while KVM makes the machine.
        for order in prepared.devices:
            self.supervisor.spawn(order, self._memory)
        self.machine = arch.make_machine(
            prepared.kvm,
            self._memory,
            self.loop,
            lock,
            MachineEvents(
                on_reset=self._on_reset,
                on_power_off=self._on_power_off,
                on_panic=self._on_panic,
                on_eject=None if serve_control is None else self._on_eject,
            ),
            config.pci_weights,
        )

    def build(self) -> None:
        """Wait for every device and build the machine around them.

        Raises:
            VmmError: a device did not start, or the warden has ended.
            HostError: KVM refuses something.
        """
        prepared, machine = self._prepared, self.machine
        prepared.serial.attach(
            machine.pio,
            machine.irq_line,
            self.loop,
            machine.lock,
            on_leave=lambda: self.end(VmExit.STOPPED, "left by the user"),
        )
        machine.parts += prepared.serial.uarts.values()
        machine.ptys = prepared.serial.ptys
        if self._config.has_virtio_mem:
            from crosvm_py.vmm.plugged_memory import connect

            connect(machine, self.supervisor.devices, self._config.hotplugged_bytes)
        elif self._memory.hot_areas:
            machine.add_dimm_slots()
        config = self._config
        if config.watchdog:
            machine.add_watchdog(self._on_watchdog)
        if config.numa:
            machine.add_nodes(config.numa, config.zones)
        machine.load(prepared.plan, config.cpus, config.cpu_spec, restartable=config.reboots)
        self.supervisor.wait_ready()
        self.supervisor.seal(self._memory)
        devices = self.supervisor.devices
        for device in devices:
            device.events = machine.plug(device, prepared.slots[device.name])
            if prepared.cgroup is not None:
                device.cgroup = f"{prepared.cgroup.path}/{device.name}"
            if prepared.serial.virtio is not None and device.kind is CONSOLE:
                prepared.serial.virtio.connect(device.command, device.is_writing)
        if machine.hotplug is not None:
            from crosvm_py.vmm.plugging import Plugging

            self.plugging = Plugging(
                *(self.loop, machine, self.supervisor, machine.hotplug, self._config.cpus),
                {device.device_id: prepared.slots[device.name] for device in devices},
            )
            self.plugging.cgroup = "" if prepared.cgroup is None else prepared.cgroup.path

    def run(self) -> VmExit:
        """Let the guest run until something ends the VM."""
        self._vcpus = vcpus = self.machine.make_vcpu_set(self._on_vcpu_exit)
        self.loop.wake_on_signals()
        handle_end_signals(self._on_signal)
        if self._config.reboots:
            from crosvm_py.vmm.reboot import Rebooting

            self.rebooting = rebooting = Rebooting(self.loop, self.machine, vcpus, self.end)
            rebooting.on_restart = self._on_restart
            rebooting.is_settled = lambda: self.supervisor.is_settled
            if self.plugging is not None:
                self.plugging.is_rebooting = lambda: rebooting.is_under_way
        if self._serve_control is not None:
            self._control = self._serve_control(self, vcpus)
        self._start(vcpus)
        vcpus.resume()
        if self._exit is None:
            self.loop.run()
        return VmExit.CRASH if self._exit is None else self._exit

    def close(self) -> None:
        """Take the VM apart, users before what they use."""
        if self._vcpus is not None and not self._vcpus.stop(_STOP_SECONDS):
            log.error("a vCPU does not stop; giving up on an orderly end")
            self._prepared.serial.close()
            os._exit(VmExit.CRASH)
        if self.rebooting is not None:
            self.rebooting.close()
        if self.dumper is not None:
            self.dumper.close()
        if self._control is not None:
            self._control.close()
        if self._prepared.serial.virtio is not None:
            self._prepared.serial.virtio.drain(self.loop.run_once)
        self.supervisor.end()
        if self.plugging is not None:
            self.plugging.close()
        self.machine.close()
        self._memory.close()
        self.loop.close()

    def _start(self, vcpus: VcpuSet) -> None:
        """Start the vCPU threads, paused and confined, then load this thread's own filter.

        Raises:
            VmmError: a thread could not be confined; no guest has run.
        """
        if self._prepared.separates_cores and self._config.per_vm_core_scheduling:
            take_core()  # the vCPU threads inherit the cookie
        policies = self._prepared.policies
        if policies is None:
            vcpus.start(paused=True, confine=lambda index: self._enter_vcpu(index, None))
            vcpus.wait_confined()
            return
        expect_filter()
        self.supervisor.report_denied_calls()
        confine_vmm(
            cpus=vcpus.threads,
            removable_in=sorted(
                {os.path.dirname(socket.path) for socket in self._prepared.sockets}
            ),
        )
        vcpus.start(paused=True, confine=lambda index: self._enter_vcpu(index, policies.vcpu))
        vcpus.wait_confined()
        load_filter(policies.main)

    def _enter_vcpu(self, index: int, policy: Policy | None) -> None:
        """Confine the calling thread, so that it may run a guest."""
        pin(index, self._config.cpu_spec)
        if self._prepared.separates_cores and not self._config.per_vm_core_scheduling:
            take_core()
        if policy is not None:
            load_filter(policy)

    def end(self, vm_exit: VmExit, reason: str) -> None:
        """End the VM; only the first reason counts. Call it in the loop's thread."""
        if self._exit is not None:
            return
        if self._panicked and vm_exit in (VmExit.STOPPED, VmExit.RESET, VmExit.WATCHDOG):
            vm_exit = VmExit.GUEST_PANIC
        self._exit = vm_exit
        if vm_exit == VmExit.CRASH:
            log.error("%s", reason)
        else:
            log.info("%s", reason)
        self.loop.stop()

    def _end_soon(self, vm_exit: VmExit, reason: str) -> None:
        """End the VM. Call it in any thread."""
        self.loop.call_soon_threadsafe(lambda: self.end(vm_exit, reason))

    def _on_vcpu_exit(self, _index: int, reason: VmExitReason) -> None:
        self._end_soon(reason.kind, reason.text)

    def _on_device_death(self, reason: str) -> None:
        if self._vcpus is not None:  # otherwise build() raises the reason
            self.end(VmExit.CRASH, reason)

    def _on_reset(self) -> None:
        self._reset(VmExit.RESET, "the guest asked for a reset")

    def _on_watchdog(self, seconds: float) -> None:
        reason = f"the watchdog expired: the guest did not answer for {seconds:.1f} s"
        self._reset(VmExit.WATCHDOG, reason)

    def _reset(self, vm_exit: VmExit, reason: str) -> None:
        if self.rebooting is None:
            self._end_soon(vm_exit, reason)
        else:
            self.rebooting.request(reason)

    def _on_restart(self) -> None:
        self._panicked = False
        if self.plugging is not None:
            self.plugging.on_restart()

    def _on_power_off(self) -> None:
        if self.on_power_off is not None and self._vcpus is not None:
            self._vcpus.park()
            self.loop.call_soon_threadsafe(self.on_power_off)
            return
        self._end_soon(VmExit.STOPPED, "the guest powered off")

    def _on_eject(self, slot: int) -> None:
        if self.plugging is not None:
            self.plugging.on_eject(slot)

    def _on_panic(self) -> None:
        if not self._panicked:
            self._panicked = True
            log.warning("the guest reports a panic")
            self.on_panic()

    def _on_signal(self, signum: int, _frame: object) -> None:
        self._end_soon(VmExit.STOPPED, f"ended by {signal.signal_name(signum)}")
