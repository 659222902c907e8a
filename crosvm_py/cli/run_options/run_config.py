# SPDX-License-Identifier: BSD-3-Clause
"""All options of ``crosvm run``, and how they become a RunConfig."""

from __future__ import annotations

import os

from crosvm_py.cli.run_options import (
    balloon,
    boot,
    care,
    config_file,
    control,
    disks,
    machine,
    net,
    rng,
    sandbox,
    serial,
    vsock,
)
from crosvm_py.cli.run_options.twice import first_twice
from crosvm_py.config import RunConfig
from devices.virtio.block.spec import BlockSpec
from sys_util.errors import ConfigError, UsageError
from sys_util.facts import replace
from sys_util.typing import TYPE_CHECKING, Final, NamedTuple

if TYPE_CHECKING:
    from crosvm_py.cli.grammar.options import Arguments, Option, OptionGroup

GROUPS: Final[tuple[OptionGroup, ...]] = (
    *(boot.GROUP, machine.GROUP, disks.GROUP, net.GROUP, serial.GROUP, vsock.GROUP),
    *(balloon.GROUP, rng.GROUP, config_file.GROUP, control.GROUP, care.GROUP, sandbox.GROUP),
)
OPTIONS: Final[tuple[Option[object], ...]] = tuple(
    option for group in GROUPS for option in group.options
)


def build_config(arguments: Arguments, *, extended_status: bool) -> RunConfig:
    """Return the RunConfig for the options, and for the file of ``--config``.

    Raises:
        UsageError: there is no kernel.
        ConfigError: the options make no sense together, or the file cannot be used.
    """
    path = arguments.get(config_file.CONFIG)
    if path is None and not arguments.positional:
        raise UsageError("run: KERNEL is missing")
    made = _of_options(arguments, extended_status=extended_status)
    if path is not None:
        base = config_file.config_from_file(
            path, sandbox=made.sandbox, log_failures=made.seccomp_log_failures
        )
        made = config_file.on_top_of(base, made, arguments)
    if arguments.has(machine.MEMORY) and made.hotplug_bytes and not _has_control(made):
        raise ConfigError(
            f"{machine.MEMORY.name}: max needs {control.SOCKET.name} or {control.API_SOCKET.name}, "
            "through which more memory is asked for"
        )
    _check_sockets(
        ("--socket", made.socket),
        ("--vsock", None if made.vsock is None else made.vsock.socket),
        ("--api-socket", None if made.api_socket is None else made.api_socket.path),
    )
    return made


def _has_control(config: RunConfig) -> bool:
    return config.socket is not None or config.api_socket is not None


def _of_options(arguments: Arguments, *, extended_status: bool) -> RunConfig:
    """Return what the options alone say; without KERNEL its path is empty."""
    memory = arguments.get(machine.MEMORY) or machine.MemoryOption()
    cpus = arguments.get(machine.CPUS) or machine.CpusOption()
    guest = _guest(arguments) if arguments.positional else _Guest("")
    return RunConfig(
        kernel=guest.kernel,
        params=(*guest.params, *arguments.every(boot.PARAMS)),
        cpus=cpus.vcpus,
        cpu_spec=replace(cpus.spec, affinity=arguments.get(machine.AFFINITY) or ()),
        memory_bytes=memory.size_bytes,
        initrd=arguments.get(boot.INITRD) or guest.initrd,
        disks=disks.disks(arguments, guest.root),
        serial=serial.serial_ports(arguments),
        rng=rng.rng(arguments),
        socket=arguments.get(control.SOCKET),
        api_socket=arguments.get(control.API_SOCKET),
        name=arguments.get(control.NAME) or "crosvm",
        seccomp_policy_dir=arguments.get(sandbox.POLICY_DIR),
        seccomp_log_failures=arguments.has(sandbox.LOG_FAILURES),
        sandbox=not arguments.has(sandbox.NO_SANDBOX),
        extended_status=extended_status,
        networks=net.networks(arguments),
        balloon=balloon.balloon(arguments, memory.size_bytes),
        vsock=vsock.vsock(arguments),
        device_restarts=care.restarts(arguments),
        device_timeout_seconds=care.timeout_seconds(arguments),
        cgroup=arguments.get(sandbox.CGROUP),
        guest_files=guest.files,
        landlock=sandbox.landlock(arguments),
        huge_pages=memory.huge_pages,
        hotplug_bytes=memory.hotplug_bytes,
        hotplug_method=memory.hotplug_method,
        pool_page_bytes=memory.pool_page_bytes,
        prefault=memory.prefault,
        core_scheduling=arguments.get(machine.CORE_SCHEDULING),
        per_vm_core_scheduling=machine.per_vm_core_scheduling(arguments),
        reboots=arguments.has(machine.REBOOT),
        watchdog=arguments.has(machine.WATCHDOG),
    )


class _Guest(NamedTuple):
    """What the argument KERNEL stands for: a kernel, or all files of a guest's folder."""

    kernel: str
    params: tuple[str, ...] = ()
    initrd: str | None = None
    root: BlockSpec | None = None
    files: tuple[str, ...] = ()


def _guest(arguments: Arguments) -> _Guest:
    kernel = arguments.positional[0]
    if not os.path.isdir(kernel):
        return _Guest(kernel)
    from crosvm_py.file_parser.guest import read_guest

    found = read_guest(
        kernel,
        sandbox=not arguments.has(sandbox.NO_SANDBOX),
        log_failures=arguments.has(sandbox.LOG_FAILURES),
    )
    image = found.rwroot or found.root
    root = None
    if image is not None:
        root = BlockSpec(
            image, read_only=found.rwroot is None, root=True, option="guest root", follow=False
        )
    files = tuple(path for path in (found.kernel, found.initrd) if path is not None)
    return _Guest(found.kernel, (found.params,), found.initrd, root, files)


def _check_sockets(*sockets: tuple[str, str | None]) -> None:
    """Refuse one path for two sockets: the error would blame another process."""
    paths = {option: os.path.normpath(path) for option, path in sockets if path}
    path = first_twice(paths.values())
    if path is not None:
        options = " and ".join(option for option, each in paths.items() if each == path)
        raise ConfigError(f"{options}: both are to make a socket at {path}")
