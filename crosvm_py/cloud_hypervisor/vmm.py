# SPDX-License-Identifier: BSD-3-Clause
"""A vmm that waits for its VM: ``cloud-hypervisor --api-socket``.

The process that the user started is the vmm from the beginning. Until vm.boot it has read nothing
from a guest, and may open whatever the configuration names. Then it runs that VM as ``crosvm run``
does, and is confined. It can start no other one. A VM that is shut down gives its memory back and
keeps its processes and descriptors (``halted.py``); they end when it is deleted.
"""

from __future__ import annotations

import os

from crosvm_py.api.device_ids import id_of
from crosvm_py.cloud_hypervisor.halted import HaltedVm
from crosvm_py.config import MAX_CARDS
from crosvm_py.end_signals import handle_end_signals
from crosvm_py.exit_status import VmExit
from crosvm_py.leaving import is_confined
from crosvm_py.requests.balloon import BalloonSet
from crosvm_py.requests.catalogue import SERVED
from crosvm_py.requests.core_dump import WriteCore
from crosvm_py.requests.creation import (
    INTERNAL,
    MAX_REASONS,
    Booted,
    BootVm,
    DropFds,
    EndVm,
    ForgetVm,
    KeepFds,
    KeptFds,
)
from crosvm_py.requests.life import Reboot, Resume, Stop, Suspend
from crosvm_py.requests.pending import Pending
from crosvm_py.requests.protocol import MAX_REASON_CHARS, Done, Failed
from crosvm_py.requests.resize import Resize, Resized
from crosvm_py.requests.vm import ENDED, WAITING, QueryVm, VmFacts
from crosvm_py.run import VmHost, run_vm
from crosvm_py.vmm.control_link import ControlLink
from devices.virtio.net.features import MAX_PAIRS
from sys_util.errors import VmmError, describe, refused_call
from sys_util.event_loop import EventLoop
from sys_util.log import get_logger
from sys_util.typing import TYPE_CHECKING, Final
from sys_util.wire import Codec

if TYPE_CHECKING:
    from collections.abc import Callable

    from crosvm_py.cloud_hypervisor.events import EventMonitor
    from crosvm_py.config import RunConfig
    from crosvm_py.machine.vcpu import VcpuSet
    from crosvm_py.requests.pending import Handler
    from crosvm_py.requests.protocol import Request, Response
    from crosvm_py.socket_path import BoundSocket
    from crosvm_py.vmm.control_proxy import KeeperProcess
    from crosvm_py.vmm.device_proxy import DeviceProcess
    from crosvm_py.vmm.vm import VirtualMachine
    from sys_util import socket

log = get_logger("crosvm.vm")

# What clients may leave with the vmm before the boot: cards of all queues.
MAX_KEPT_FDS: Final = MAX_CARDS * MAX_PAIRS

_REQUESTS: Final = Codec((*SERVED, *INTERNAL))
NO_SECOND_VM: Final = (
    "this process has run a VM already and cannot start another one yet; start a new process"
)


class WaitingVmm:
    """The vmm before, during and after its VM. Owns the descriptors that clients gave it."""

    def __init__(
        self,
        keeper: KeeperProcess | None,
        api: BoundSocket | None,
        read_config: Callable[[frozenset[int]], tuple[RunConfig, dict[str, str]]],
        events: EventMonitor,
        *,
        no_shutdown: bool,
        orders: socket.socket | None = None,
    ) -> None:
        """Serve the control process, if there is one.

        Args:
            keeper: the keeper of the control process; the caller ends it.
            api: the socket that the caller removes at the end, when we may be confined.
            read_config: returns the VM to run, given the descriptors that clients gave us, and the
                ids of its devices by the names that the vmm has for them.
            events: what happens is told there.
            no_shutdown: stay when the guest has powered off.
            orders: the warden's end of the channel from the opener; the VM closes it.
        """
        self._halted: HaltedVm | None = None  # set while the VM runs
        self._orders = orders
        self._api = api
        self._read_config = read_config
        self._events = events
        self._no_shutdown = no_shutdown
        self._loop = EventLoop()
        self._fds: set[int] = set()
        self._ids: dict[str, str] = {}
        self._state = WAITING
        self._exit: VmExit | None = None
        self._stays = False  # when the VM has ended
        self._booting: Pending | None = None
        self._ending: Pending | None = None  # of a client that ends the VM and not the vmm
        self._link = (
            None
            if keeper is None
            else ControlLink(self._loop, keeper.channel, self._handle, _REQUESTS)
        )

    def run(self, *, boot: bool) -> VmExit:
        """Wait for a VM and run it, until the vmm is to end; with ``boot`` run it at once.

        Raises:
            VmmError: the VM of ``boot`` cannot run.
        """
        self._take_signals()
        self._events.tell("vmm", "starting")
        if boot:
            self._run_vm()
        while self._exit is None:
            self._loop.run()
            if self._booting is not None:
                self._try_boot(self._booting)
        self._events.tell("vmm", "shutdown")
        if self._link is not None:
            self._link.close()
        return self._exit

    def _take_signals(self) -> None:
        self._loop.wake_on_signals()
        handle_end_signals(lambda _signum, _frame: self._end(VmExit.STOPPED))

    def _end(self, vm_exit: VmExit) -> None:
        self._exit = vm_exit
        self._loop.stop()

    def _handle(self, request: Request) -> Response | Pending:
        """Answer while there is no VM."""
        match request:
            case QueryVm():
                return VmFacts(self._state, 0, 0)
            case Stop():
                self._end(VmExit.STOPPED)
                return Done()
            case Reboot():
                self._events.tell("vm", "rebooting")
            case BootVm() if self._state == ENDED:
                return Booted(500, (NO_SECOND_VM,))
            case BootVm() if self._booting is not None:
                return Booted(500, ("VM is being booted already",))
            case BootVm():
                self._booting = Pending()
                self._loop.stop()
                return self._booting
            case EndVm() | ForgetVm() | KeepFds() | DropFds():
                return self._keep(request)
        return Failed("VM is not running")

    def _keep(self, request: Request) -> Response:
        if isinstance(request, KeepFds) and self._link is not None:
            fds = self._link.take_fds()
            self._fds.update(fds)
            if len(self._fds) > MAX_KEPT_FDS:
                self._drop(set(fds))
                return Failed(f"{MAX_KEPT_FDS} descriptors are kept already; remove a card")
            return KeptFds(tuple(fds))
        if isinstance(request, DropFds):
            self._drop(self._fds.intersection(request.numbers))
        if isinstance(request, ForgetVm):
            self._drop(set(self._fds))
            self._events.tell("vm", "deleted")
        return Done()

    def _drop(self, fds: set[int]) -> None:
        for fd in fds:
            os.close(fd)
        self._fds -= fds

    def _try_boot(self, pending: Pending) -> None:
        try:
            self._run_vm()
        except (VmmError, OSError) as error:
            if is_confined():  # nothing can be opened any more, so nothing can be tried again
                log.error("%s", describe(error))
                self._end(VmExit.ERROR)
            self._booting = None
            pending.complete(_refusal(error))

    def _run_vm(self) -> None:
        self._events.tell("vm", "booting")
        config, self._ids = self._read_config(frozenset(self._fds))
        vm_exit = run_vm(config, host=VmHost(self._api, self._serve, self._orders))
        self._state = ENDED
        if self._halted is None or not self._halted.is_halted:
            self._events.tell("vm", "shutdown")
        self._halted = None
        if self._ending is not None:
            self._ending.complete(self._keep(ForgetVm()))
            self._ending = None
        if self._stays and vm_exit == VmExit.STOPPED:
            self._take_signals()
            return
        self._events.tell("vm", "deleted")
        self._end(vm_exit)

    def _serve(self, vm: VirtualMachine, vcpus: VcpuSet) -> _Serving:
        """Serve the control process on the VM's loop; called before the vCPUs run."""
        from crosvm_py.operations.core_dump import CoreDumper
        from crosvm_py.operations.dispatch import request_handler
        from crosvm_py.operations.operation import RunningVm
        from crosvm_py.operations.suspension import Suspension

        suspension = Suspension(vm.machine, vcpus, vm.supervisor)
        plugging = vm.plugging
        rebooting = vm.rebooting
        vm.dumper = dumper = CoreDumper(vm.loop, vm.machine, vcpus, suspension)
        if self._link is not None:
            dumper.take_fds = self._link.take_fds
        running = RunningVm(
            *(vm.machine, vm.supervisor, suspension, vcpus, vm.end),
            *(plugging, rebooting, dumper),
        )
        if rebooting is not None:
            suspension.join(rebooting)
            rebooting.on_event = self._tell_of_reboot
            self._halted = halted = HaltedVm(
                rebooting, suspension, lambda event: self._events.tell("vm", event)
            )
            if self._no_shutdown:
                vm.on_power_off = halted.halt_for_guest
        if plugging is not None:
            plugging.is_paused = lambda: suspension.holds_devices
            plugging.on_plugged = self._watch_driver
            plugging.on_removed = self._tell_removed
            if self._link is not None:
                self._link.on_lost = plugging.release_all
        handle = self._handler_while_running(vm, request_handler(running))
        vm.loop.call_soon_threadsafe(lambda: self._tell_booted(vm))
        vm.on_panic = lambda: self._events.tell_of_guest("guest", "panic", {"event": "1"})
        for device in vm.supervisor.devices:
            self._watch_driver(device)
        if self._link is not None:
            self._link.move(vm.loop, handle)
        return _Serving(self)

    def stop_serving(self) -> None:
        """Serve the control process on our own loop again: the VM ends."""
        if self._link is not None:
            self._link.move(self._loop, self._handle)
            self._link.on_lost = lambda: None

    def _tell_of_reboot(self, event: str, by_client: bool) -> None:
        tell = self._events.tell if by_client else self._events.tell_of_guest
        tell("vm", event)

    def _watch_driver(self, device: DeviceProcess) -> None:
        """Tell of the driver of a device from now on."""
        named = {"id": id_of(self._ids, device.name)}
        device.on_driver = lambda event: self._events.tell_of_guest("virtio-device", event, named)

    def _tell_removed(self, device: DeviceProcess) -> None:
        named = {"id": id_of(self._ids, device.name)}
        self._events.tell_of_guest("vm", "device-removed", named)

    def _tell_booted(self, vm: VirtualMachine) -> None:
        self._events.tell("vm", "booted")
        self._drop(set(self._fds))  # the devices have duplicates
        if self._exit is not None:  # a signal came before the VM had a handler for it
            vm.end(VmExit.STOPPED, "ended by a signal")
        if self._booting is not None:
            self._booting.complete(Booted(0, ()))
            self._booting = None

    def _handler_while_running(self, vm: VirtualMachine, handle: Handler) -> Handler:
        halted = self._halted

        def handle_all(request: Request) -> Response | Pending:
            answer = self._change_life(vm, request)
            if answer is not None:
                return answer
            if halted is not None and halted.is_halted:
                return halted.handle(request, lambda each: self._handle_running(handle, each))
            return self._handle_running(handle, request)

        return handle_all

    def _change_life(self, vm: VirtualMachine, request: Request) -> Response | Pending | None:
        """Carry out what can be asked whether the VM runs or is shut down."""
        match request:
            case Stop():
                self._stays = False
                vm.end(VmExit.STOPPED, "stopped by a client")
                return Done()
            case EndVm() if self._halted is not None:
                return self._halted.halt()
            case ForgetVm() if self._ending is not None:
                return Failed("VM is being deleted already")
            case ForgetVm():
                return self._delete(vm)
            case KeepFds() | DropFds():
                return self._keep(request)
        return None

    def _handle_running(self, handle: Handler, request: Request) -> Response | Pending:
        match request:
            case BootVm():
                return Booted(500, ("VM is already running",))
            case Suspend():
                return self._told(handle(request), "paus")
            case Resume():
                return self._told(handle(request), "resum")
            case WriteCore():
                return self._told(handle(request), "coredump")
            case BalloonSet() | Resize():
                return self._told(handle(request), "resiz")
        return handle(request)

    def _delete(self, vm: VirtualMachine) -> Pending:
        """End the VM, whose processes and descriptors are gone when this is answered."""
        self._stays = True
        self._ending = Pending()
        vm.end(VmExit.STOPPED, "deleted by a client")
        return self._ending

    def _told(self, answer: Response | Pending, verb: str) -> Response | Pending:
        self._events.tell("vm", f"{verb}ing")
        passed = Pending()

        def tell(response: Response) -> None:
            if not isinstance(response, Failed) and response != Resized(is_busy=True):
                self._events.tell("vm", f"{verb}ed")
            passed.complete(response)

        if isinstance(answer, Pending):
            answer.deliver_to(tell)
        else:
            tell(answer)
        return passed


class _Serving:
    """What the VM closes at its end."""

    def __init__(self, vmm: WaitingVmm) -> None:
        self._vmm = vmm

    def close(self) -> None:
        """Take the control process back."""
        self._vmm.stop_serving()


def _refusal(error: VmmError | OSError) -> Booted:
    """Return the status and the chain of causes for an error of the start."""
    problem = getattr(error, "problem", None)
    if problem is not None:
        status, reasons = problem.status, problem.chain()
    elif isinstance(error, OSError):
        status, reasons = 500, (refused_call(error), error.strerror or str(error))
    else:
        cause = error.__cause__
        last = (cause.strerror,) if isinstance(cause, OSError) and cause.strerror else ()
        status, reasons = 500, (str(error), *last)
    return Booted(status, tuple(reason[:MAX_REASON_CHARS] for reason in reasons[:MAX_REASONS]))
