# SPDX-License-Identifier: BSD-3-Clause
"""All options of ``crosvm run``, and the RunConfig that they make."""

from __future__ import annotations

from crosvm_py.cli.run_options.balloon import OPTIONS as BALLOON_OPTIONS
from crosvm_py.cli.run_options.balloon import balloon
from crosvm_py.cli.run_options.boot import INITRD, PARAMS
from crosvm_py.cli.run_options.care import OPTIONS as CARE_OPTIONS
from crosvm_py.cli.run_options.care import restarts, timeout_seconds
from crosvm_py.cli.run_options.disks import OPTIONS as DISK_OPTIONS
from crosvm_py.cli.run_options.disks import disks
from crosvm_py.cli.run_options.machine import (
    CPUS,
    DEFAULT_MEMORY_BYTES,
    MEMORY,
    MULTIPROCESS,
    NAME,
    SOCKET,
)
from crosvm_py.cli.run_options.net import OPTIONS as NET_OPTIONS
from crosvm_py.cli.run_options.net import networks
from crosvm_py.cli.run_options.rng import OPTIONS as RNG_OPTIONS
from crosvm_py.cli.run_options.rng import rng
from crosvm_py.cli.run_options.sandbox import CGROUP, LOG_FAILURES, NO_SANDBOX, POLICY_DIR
from crosvm_py.cli.run_options.serial import SERIAL, serial_ports
from crosvm_py.cli.run_options.vsock import OPTIONS as VSOCK_OPTIONS
from crosvm_py.cli.run_options.vsock import vsock
from crosvm_py.config import RunConfig
from sys_util.typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from crosvm_py.cli.grammar.options import Arguments, Option

OPTIONS: Final[tuple[Option[object], ...]] = (
    PARAMS,
    CPUS,
    MEMORY,
    INITRD,
    *DISK_OPTIONS,
    *NET_OPTIONS,
    *VSOCK_OPTIONS,
    SOCKET,
    SERIAL,
    *RNG_OPTIONS,
    *BALLOON_OPTIONS,
    *CARE_OPTIONS,
    NAME,
    POLICY_DIR,
    LOG_FAILURES,
    CGROUP,
    NO_SANDBOX,
    MULTIPROCESS,
)


def build_config(arguments: Arguments, *, extended_status: bool) -> RunConfig:
    """Return what the options ask for.

    Raises:
        ConfigError: each option can be read, but together they make no sense.
    """
    memory_bytes = arguments.get(MEMORY) or DEFAULT_MEMORY_BYTES
    return RunConfig(
        kernel=arguments.positional[0],
        params=tuple(arguments.every(PARAMS)),
        cpus=arguments.get(CPUS) or 1,
        memory_bytes=memory_bytes,
        initrd=arguments.get(INITRD),
        disks=disks(arguments),
        serial=serial_ports(arguments),
        rng=rng(arguments),
        socket=arguments.get(SOCKET),
        name=arguments.get(NAME) or "crosvm",
        seccomp_policy_dir=arguments.get(POLICY_DIR),
        seccomp_log_failures=arguments.has(LOG_FAILURES),
        sandbox=not arguments.has(NO_SANDBOX),
        extended_status=extended_status,
        networks=networks(arguments),
        balloon=balloon(arguments, memory_bytes),
        vsock=vsock(arguments),
        device_restarts=restarts(arguments),
        device_timeout_seconds=timeout_seconds(arguments),
        cgroup=arguments.get(CGROUP),
    )
