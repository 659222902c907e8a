# SPDX-License-Identifier: BSD-3-Clause
"""``crosvm run``: the steps of a run, in order.

Start the process that reads the kernel; open and check everything; fork the warden; have it start
the devices, and build the machine meanwhile; plug the devices in; confine the vmm; run until
something ends the VM; take everything apart.
"""

from __future__ import annotations

import gc
import os
from contextlib import ExitStack

from crosvm_py import bundle
from crosvm_py.end_signals import release_end_signals, reset_inherited_signals
from crosvm_py.inherited import close_unused
from crosvm_py.vmm.kernel_parser import start_kernel_parser
from crosvm_py.vmm.prepared_kernel import find_prepared
from jail.signals import keep_signals_inside
from sys_util import linux
from sys_util.channel import socket_pair
from sys_util.errors import Refusable
from sys_util.typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable

    from crosvm_py.config import RunConfig
    from crosvm_py.exit_status import VmExit
    from crosvm_py.kinds.policies import Recorded
    from crosvm_py.log import Syslog
    from crosvm_py.machine.vcpu import VcpuSet
    from crosvm_py.relay.outlet import Outlet
    from crosvm_py.socket_path import BoundSocket
    from crosvm_py.vmm.control_link import ControlLink
    from crosvm_py.vmm.control_proxy import KeeperProcess
    from crosvm_py.vmm.preparation import Preparation
    from crosvm_py.vmm.vm import Closing, VirtualMachine
    from sys_util import socket


class VmHost(NamedTuple):
    """A process that has a control process of its own, and runs a VM at some time.

    Args:
        api: its socket, which it removes at its end.
        serve: serves that control process while the VM runs (see ``VirtualMachine``).
        orders: the warden's end of the channel from the opener of that control process, if it has
            one; it is closed before the guest runs.
    """

    api: BoundSocket | None
    serve: Callable[[VirtualMachine, VcpuSet], Closing]
    orders: socket.socket | None = None


def run_vm(
    config: RunConfig,
    syslog: Syslog | None = None,
    recorded: Recorded | None = None,
    host: VmHost | None = None,
) -> VmExit:
    """Run one VM from its start to its end and return how it ended.

    ``syslog`` gets the log lines and is closed at the end. With ``recorded``, some processes have
    the filter of a recorder instead of their own. With ``host`` the process goes on when the VM has
    ended, or could not be started; it is confined if the guest ran.

    Raises:
        ConfigError: the user asked for something impossible.
        HostError: the host refuses something.
        VmmError: a device did not start.
    """
    reset_inherited_signals()
    linux.set_process_name(config.name)
    with ExitStack() as stack:
        end_relay = stack.enter_context(ExitStack())  # runs last: the relay ends after its writers
        if syslog is not None:
            stack.callback(syslog.close)
        parser = find_prepared(config) or start_kernel_parser(config)
        stack.callback(parser.close)
        # Imported here, while the child reads the kernel.
        from crosvm_py.vmm.preparation import prepare
        from crosvm_py.vmm.warden_proxy import adopt_spare, reap_spare, start_warden

        hosted = None if host is None else host.orders
        prepared = prepare(config, parser, stack, recorded, plugs=hosted is not None)
        close_unused(fd for order in prepared.devices for fd in order.fds)
        if prepared.policies is not None:
            keep_signals_inside()
        outlets = _outlets(prepared, syslog)
        if outlets:
            from crosvm_py.vmm.relay import start_relay

            end_relay.callback(start_relay(outlets, sandbox=config.sandbox).end)
        # The ends of the opener and of the warden; this process must not keep the former.
        has_control = host is None and not (prepared.socket is None and prepared.api is None)
        orders = socket_pair() if has_control else None
        kinds = {device.kind for device in prepared.devices}
        to_warden = hosted if orders is None else orders[1]
        pipe = None if syslog is None else (syslog.tag, syslog.pipe_fd)
        warden = None if recorded else adopt_spare(prepared, kinds, pipe, to_warden)
        if warden is None:
            warden = start_warden(
                prepared.policies,
                kinds,
                _cleanup(prepared),
                keep_fds=_kept(prepared, syslog, recorded),
                cgroup=prepared.cgroup,
                orders=to_warden,
            )
        keeper = None
        if orders is not None:
            keeper = _start_keeper(config, prepared, syslog, orders)
            stack.callback(keeper.end)
        release_end_signals()
        parser.close()  # only reaps it: it has ended meanwhile
        # Imported after the fork, because only the vmm needs it; the warden imports meanwhile, too.
        from crosvm_py.vmm.vm import VirtualMachine

        serve = _control_server(keeper) if host is None else host.serve
        on_failure = stack.enter_context(ExitStack())
        on_failure.callback(warden.end)
        with Refusable("make", "the virtual machine"):
            # The warden ends before the host does, so it does not remove the host's socket.
            seen = prepared if host is None else prepared._replace(api=host.api)
            vm = VirtualMachine(config, seen, warden, serve)
        on_failure.pop_all()  # from now on the VM ends the warden
        stack.callback(vm.close)
        vm.build()
        reap_spare()
        if hosted is not None:
            hosted.close()
        bundle.drop()
        gc.freeze()  # all present objects live to the end, so collections may skip them
        gc.enable()
        return vm.run()


def _start_keeper(
    config: RunConfig,
    prepared: Preparation,
    syslog: Syslog | None,
    orders: tuple[socket.socket, socket.socket],
) -> KeeperProcess:
    """Start the control process and its opener. Nothing of them is imported without a socket."""
    bound, api = prepared.socket, prepared.api
    from crosvm_py.control.protocol import ControlFds
    from crosvm_py.vmm.control_proxy import start_keeper

    policies = prepared.policies
    filters = (None, None) if policies is None else (policies.control, policies.opener)
    rules = -1
    if config.landlock is not None:
        from crosvm_py.opener.rules import make_rules

        rules = make_rules(config.landlock)
    fds = ControlFds(
        listening=-1 if bound is None else bound.sock.fileno(),
        orders=orders[0].fileno(),
        rules=rules,
    )
    kept = [] if syslog is None else [syslog.pipe_fd]
    if api is None:
        keeper = start_keeper(fds, filters, kept)
    else:
        from crosvm_py.api.store import make_store

        store = make_store()
        fds = fds._replace(api=api.sock.fileno(), store=store)
        keeper = start_keeper(fds, filters, kept, lambda: _describe(config, store))
        os.close(store)
    for each in (bound, api, *orders):
        if each is not None:
            each.close()
    if rules >= 0:
        os.close(rules)
    return keeper


def _describe(config: RunConfig, store: int) -> None:
    """Write the configuration where the control process finds it."""
    from crosvm_py.api.store import Store
    from crosvm_py.vm_config.codec import encode
    from crosvm_py.vm_config.from_run import vm_config

    Store(store).save(encode(vm_config(config)))


def _control_server(
    keeper: KeeperProcess | None,
) -> Callable[[VirtualMachine, VcpuSet], ControlLink] | None:
    """Return what makes the vmm's side of the control process, once the VM is built."""
    if keeper is None:
        return None

    def serve(vm: VirtualMachine, vcpus: VcpuSet) -> ControlLink:
        from crosvm_py.operations.core_dump import CoreDumper
        from crosvm_py.operations.dispatch import request_handler
        from crosvm_py.operations.operation import RunningVm
        from crosvm_py.operations.suspension import Suspension
        from crosvm_py.vmm.control_link import ControlLink

        suspension = Suspension(vm.machine, vcpus, vm.supervisor)
        plugging = vm.plugging
        vm.dumper = dumper = CoreDumper(vm.loop, vm.machine, vcpus, suspension)
        running = RunningVm(
            *(vm.machine, vm.supervisor, suspension, vcpus, vm.end),
            *(plugging, vm.rebooting, dumper),
        )
        if vm.rebooting is not None:
            suspension.join(vm.rebooting)
        handler = request_handler(running)
        link = ControlLink(vm.loop, keeper.channel, handler)
        dumper.take_fds = link.take_fds
        if plugging is not None:
            plugging.is_paused = lambda: suspension.holds_devices
            link.on_lost = plugging.release_all
        return link

    return serve


def _outlets(prepared: Preparation, syslog: Syslog | None) -> list[Outlet]:
    """Return the outlets for the relay."""
    return [*prepared.serial.take_outlets(), *([] if syslog is None else [syslog.hand_over()])]


def _kept(prepared: Preparation, syslog: Syslog | None, recorded: Recorded | None) -> list[int]:
    """Return the descriptors of the vmm that the warden needs."""
    terminal = prepared.serial.terminal
    return [
        *([] if terminal is None else [terminal.fd]),
        *([] if syslog is None else [syslog.pipe_fd]),
        *([] if recorded is None else [recorded.fd]),
    ]


def _cleanup(prepared: Preparation) -> Callable[[], None]:
    """Return the clean-up that the warden runs at the end, since the vmm may be killed."""
    sockets, terminal = prepared.sockets, prepared.serial.terminal

    def clean_up() -> None:
        if terminal is not None:
            terminal.restore()
        for bound in sockets:
            bound.unlink()

    return clean_up
