# SPDX-License-Identifier: BSD-3-Clause
"""The plan of a run, made without running it: ``crosvm run --dry-run``.

A plan is made from the same things as a run: its ``Preparation``, the table of device kinds, the
jail plans and the policies. So it finds the same errors, except those that only a start can show:
of guest memory, passt, the address of a TAP, cgroups, device processes.

``as_fields`` returns the plan for ``--json``. Names and their meaning do not change; new names may
be added:

    version         of crosvm-py
    kernel          path, format, protocol (linux64, linux32, pvh), entry, parameters (the whole
                    command line), segments: gpa and size_bytes of each
    initrd          path, gpa, size_bytes; or null
    vcpus           number of vCPUs
    memory          size_bytes, and map: gpa, size_bytes and kind (ram, reserved) of each range
    serial          of each port: place (COM1, virtio port 1, port 0x402), and type, path, input,
                    console, earlycon, stdin, name as of --serial
    devices         in the order of their PCI slots: slot, name, kind, source (what it uses on the
                    host), policy, queues (the maximum size of each), rate_limits (by the keys of
                    --rng; those that are not 0), memory_limit_bytes and processes_limit (of its
                    cgroup; null without one), descriptors (how many it gets), jail (steps in order)
    policies        of each: name, path, allows (number of system calls), used_by (processes)
    sandbox         whether there are jails and policies
    cgroup          the directory in which the VM's group would be made, or null
    sockets         control and vsock: paths of the sockets that would be made
    device_restart  how often a device gets a new process: a number, or restarts and seconds of a
                    rate, or null for always
    device_timeout  seconds that a device process may hang
"""

from __future__ import annotations

import os
from contextlib import ExitStack

from crosvm_py.end_signals import reset_inherited_signals
from crosvm_py.file_parser.child import load_parser_policy
from crosvm_py.kinds.cgroup import DeviceLimits, file_memory, find_vm_site
from crosvm_py.kinds.jail import jail_for
from crosvm_py.kinds.table import DEVICE_KINDS, build_device
from crosvm_py.version import VERSION
from crosvm_py.vmm.kernel_parser import start_kernel_parser
from crosvm_py.vmm.preparation import prepare
from crosvm_py.vmm.relay import POLICY_NAME as RELAY_POLICY
from devices.virtio.rate_limiter import LIMIT_NAMES
from jail.ids import choose
from jail.namespaces import NAMESPACES
from kernel_loader.boot_params import E820_RAM
from seccomp.loader import count, load_policy
from sys_util import msgpack
from sys_util.channel import socket_pair
from sys_util.errors import VmmError
from sys_util.log import get_logger
from sys_util.stranger import unpack
from sys_util.typing import TYPE_CHECKING, Final, NamedTuple, cast

if TYPE_CHECKING:
    from collections.abc import Iterable

    from crosvm_py.care import RestartLimit
    from crosvm_py.config import RunConfig, SerialSpec
    from crosvm_py.kinds.order import DeviceOrder
    from crosvm_py.kinds.policies import RunPolicies
    from crosvm_py.vmm.preparation import Preparation
    from kernel_loader.load import BootPlan
    from seccomp import Policy

# Descriptors that every device process has beside its own: guest memory, the page of counters, the
# channel to the vmm, and the standard streams.
_SHARED_FDS: Final = 6


class Range(NamedTuple):
    """A part of guest-physical memory."""

    gpa: int
    size_bytes: int


class MemoryRange(NamedTuple):
    """A part of the memory map that is passed to the guest."""

    gpa: int
    size_bytes: int
    kind: str


class Memory(NamedTuple):
    """Guest memory."""

    size_bytes: int
    map: tuple[MemoryRange, ...]


class Kernel(NamedTuple):
    """The kernel, and how it is started."""

    path: str
    format: str
    protocol: str
    entry: int
    parameters: str
    segments: tuple[Range, ...]


class Initrd(NamedTuple):
    """The initial RAM disk."""

    path: str
    gpa: int
    size_bytes: int


class Port(NamedTuple):
    """A serial port, debug console or virtio port."""

    place: str
    type: str
    path: str | None
    input: str | None
    console: bool
    earlycon: bool
    stdin: bool
    name: str | None


class Device(NamedTuple):
    """A virtio device and its process."""

    slot: int
    name: str
    kind: str
    source: str
    policy: str
    queues: tuple[int, ...]
    rate_limits: dict[str, int]
    memory_limit_bytes: int | None
    processes_limit: int | None
    descriptors: int
    jail: tuple[str, ...]


class PolicyUse(NamedTuple):
    """A policy, and the processes that run under it."""

    name: str
    path: str
    allows: int
    used_by: tuple[str, ...]


class Sockets(NamedTuple):
    """The sockets that would be made."""

    control: str | None
    vsock: tuple[str, ...]


class RunPlan(NamedTuple):
    """A whole run."""

    version: str
    kernel: Kernel
    initrd: Initrd | None
    vcpus: int
    memory: Memory
    serial: tuple[Port, ...]
    devices: tuple[Device, ...]
    policies: tuple[PolicyUse, ...]
    sandbox: bool
    cgroup: str | None
    sockets: Sockets
    device_restart: RestartLimit
    device_timeout: float


def plan_run(config: RunConfig) -> RunPlan:
    """Prepare a run as ``crosvm run`` does, return its plan, and undo the preparation.

    Raises:
        ConfigError: the user asked for something impossible.
        HostError: the host refuses something.
    """
    reset_inherited_signals()
    with ExitStack() as stack:
        parser = start_kernel_parser(config)
        stack.callback(parser.close)
        prepared = prepare(config, parser, stack, rehearsal=True)
        for order in prepared.devices:
            for fd in order.fds:
                stack.callback(os.close, fd)
        site = find_vm_site(config.cgroup, sandbox=config.sandbox)
        has_group = site is not None
        return RunPlan(
            VERSION,
            _kernel(config, prepared.plan),
            _initrd(config, prepared.plan),
            config.cpus,
            _memory(config, prepared.plan),
            tuple(map(_port, config.serial)),
            tuple(
                _device(order, queues, config, prepared, has_group=has_group)
                for order, queues in _queues(prepared)
            ),
            tuple(_policies(prepared, _parser_policy(config))),
            config.sandbox,
            None if site is None else site.path,
            _sockets(prepared),
            config.device_restarts,
            config.device_timeout_seconds,
        )


def as_fields(value: object) -> object:
    """Turn a plan, or a part of one, into values for JSON."""
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return {name: as_fields(getattr(value, name)) for name in value._fields}
    if isinstance(value, tuple):
        return [as_fields(item) for item in value]
    return value


def _kernel(config: RunConfig, plan: BootPlan) -> Kernel:
    image = plan.image
    return Kernel(
        config.kernel,
        image.kind,
        image.protocol,
        image.entry,
        plan.cmdline.decode(),
        tuple(Range(segment.gpa, segment.size_bytes) for segment in image.segments),
    )


def _initrd(config: RunConfig, plan: BootPlan) -> Initrd | None:
    if plan.initrd is None or config.initrd is None:
        return None
    return Initrd(config.initrd, plan.initrd_gpa, plan.initrd.size_bytes)


def _memory(config: RunConfig, plan: BootPlan) -> Memory:
    entries = sorted(plan.e820)
    kinds = {True: "ram", False: "reserved"}
    ranges = (MemoryRange(gpa, size, kinds[kind == E820_RAM]) for gpa, size, kind in entries)
    return Memory(config.memory_bytes, tuple(ranges))


def _port(spec: SerialSpec) -> Port:
    return Port(
        spec.place(),
        spec.type,
        spec.path,
        spec.input,
        spec.console,
        spec.earlycon,
        spec.stdin,
        spec.name,
    )


def _device(
    order: DeviceOrder,
    queues: tuple[int, ...],
    config: RunConfig,
    prepared: Preparation,
    *,
    has_group: bool,
) -> Device:
    kind = DEVICE_KINDS[order.kind]
    group = DeviceLimits(None, order.name, kind, config.memory_bytes)
    limits = group.limits(file_memory(kind, order.fds, order.max_file_bytes))
    return Device(
        prepared.slots[order.name],
        order.name,
        order.kind,
        order.source,
        kind.policy_name,
        queues,
        _rate_limits(order),
        limits.memory_bytes if has_group else None,
        limits.processes if has_group else None,
        len(order.fds),
        _jail(order, config, prepared.policies),
    )


def _queues(prepared: Preparation) -> list[tuple[DeviceOrder, tuple[int, ...]]]:
    """Return every device with the maximum size of each of its queues.

    For that the devices are built, in a child process, because they take over their descriptors.
    """
    read_fd, write_fd = os.pipe2(os.O_CLOEXEC)
    pid = os.fork()
    if pid == 0:
        try:
            built = [build_device(it.kind, it.spec, _given(it)) for it in prepared.devices]
            os.write(write_fd, msgpack.packb([device.queue_sizes for device in built]))
        except Exception as error:  # noqa: BLE001 - process entry: report every bug
            get_logger("crosvm").exception(error, "internal error, please report it")
        finally:
            os._exit(0)
    os.close(write_fd)
    with open(read_fd, "rb") as answer:
        packed = answer.read()
    os.waitpid(pid, 0)
    if not packed:
        raise VmmError("the devices cannot be built")
    sizes = cast("list[list[int]]", unpack(packed))  # as packed
    return [(order, tuple(each)) for order, each in zip(prepared.devices, sizes, strict=True)]


def _given(order: DeviceOrder) -> tuple[int, ...]:
    """Return the descriptors that a process of this device gets.

    If it has a broker, the broker gets the last descriptor, and the device a channel to the broker.
    """
    if DEVICE_KINDS[order.kind].broker is None:
        return order.fds
    channel, _ = socket_pair()
    return (*order.fds[:-1], channel.detach())


def _rate_limits(order: DeviceOrder) -> dict[str, int]:
    names = (name.replace("_", "-") for name in LIMIT_NAMES)
    return {name: value for name, value in zip(names, order.limits, strict=True) if value}


def _jail(order: DeviceOrder, config: RunConfig, policies: RunPolicies | None) -> tuple[str, ...]:
    if policies is None:
        return ()
    kind = DEVICE_KINDS[order.kind]
    plan = jail_for(
        kind,
        policies.devices[kind.policy_name],
        keep_fds=range(_SHARED_FDS + len(order.fds)),
        max_file_bytes=order.max_file_bytes,
        guest_bytes=config.memory_bytes,
        ids=choose().of_device().inside(),
    )
    return (f"enter new namespaces: {', '.join(NAMESPACES)}", *plan.describe())


def _parser_policy(config: RunConfig) -> Policy | None:
    return load_parser_policy(sandbox=config.sandbox, log_failures=config.seccomp_log_failures)


def _policies(prepared: Preparation, parser: Policy | None) -> Iterable[PolicyUse]:
    policies = prepared.policies
    if policies is None or parser is None:
        return
    yield _use(parser, "readers of files from outside, before the guest")
    relay = load_policy(RELAY_POLICY)
    yield _use(relay, "relay to syslog and datagram sockets")
    for name, policy in policies.devices.items():
        yield _use(policy, *_users(name, prepared.devices))
    yield _use(policies.main, "vmm")
    yield _use(policies.vcpu, "each vCPU thread of the vmm")
    yield _use(policies.warden, "warden")
    yield _use(policies.sealed, "warden, once the guest runs")
    yield _use(policies.forge, "forge")
    if policies.control is not None:
        yield _use(policies.control, "control process")


def _users(policy_name: str, orders: Iterable[DeviceOrder]) -> Iterable[str]:
    for order in orders:
        kind = DEVICE_KINDS[order.kind]
        if kind.policy_name == policy_name:
            yield order.name
        if kind.broker is not None and kind.broker.policy_name == policy_name:
            yield f"broker of {order.name}"


def _use(policy: Policy, *users: str) -> PolicyUse:
    return PolicyUse(policy.name, policy.path, count(policy), users)


def _sockets(prepared: Preparation) -> Sockets:
    control = None if prepared.socket is None else prepared.socket.path
    return Sockets(control, tuple(bound.path for bound in prepared.device_sockets))
