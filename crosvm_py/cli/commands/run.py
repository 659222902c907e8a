# SPDX-License-Identifier: BSD-3-Clause
"""``crosvm run``: its options, and the RunConfig that they make."""

from __future__ import annotations

from crosvm_py.cli.commands.care import OPTIONS as CARE_OPTIONS
from crosvm_py.cli.commands.care import restarts, timeout_seconds
from crosvm_py.cli.grammar import keyvalue
from crosvm_py.cli.grammar.command import Command
from crosvm_py.cli.grammar.options import Option, Positional, switch, text_option
from crosvm_py.cli.run_options.balloon import OPTIONS as BALLOON_OPTIONS
from crosvm_py.cli.run_options.balloon import balloon
from crosvm_py.cli.run_options.disks import OPTIONS as DISK_OPTIONS
from crosvm_py.cli.run_options.disks import disks
from crosvm_py.cli.run_options.net import OPTIONS as NET_OPTIONS
from crosvm_py.cli.run_options.net import networks
from crosvm_py.cli.run_options.rng import OPTIONS as RNG_OPTIONS
from crosvm_py.cli.run_options.rng import rng
from crosvm_py.cli.run_options.serial import SERIAL, serial_ports
from crosvm_py.cli.run_options.vsock import OPTIONS as VSOCK_OPTIONS
from crosvm_py.cli.run_options.vsock import vsock
from crosvm_py.config import RunConfig
from sys_util.errors import ConfigError, UsageError
from sys_util.typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from crosvm_py.cli.grammar.command import GlobalSettings
    from crosvm_py.cli.grammar.options import Arguments

# An x86 local APIC ID has 8 bits; 255 means all of them, and one is the I/O APIC's.
MAX_CPUS: Final = 254

MIB: Final = 1 << 20
PAGE_BYTES: Final = 4096
DEFAULT_MEMORY_BYTES: Final = 256 * MIB
# Below this not even the boot tables and a bare-metal guest fit.
MIN_MEMORY_BYTES: Final = 4 * MIB
# One KVM memory slot has at most 2^31 pages; half of that leaves room below 46 address bits.
MAX_MEMORY_BYTES: Final = 4 << 40

_NUM_CORES: Final = keyvalue.integer("num-cores", "number of vCPUs", 1)
_SIZE: Final = keyvalue.size("size", "memory, in MiB or with a suffix", DEFAULT_MEMORY_BYTES, MIB)


def _read_cpus(option: str, text: str) -> int:
    try:
        cpus = keyvalue.parse(option, text, (_NUM_CORES,))[_NUM_CORES]
    except UsageError as error:
        raise UsageError(f"{error} (1 to {MAX_CPUS} vCPUs)") from None
    if not 1 <= cpus <= MAX_CPUS:
        raise ConfigError(f"{option}: {cpus} vCPUs are not in 1..{MAX_CPUS}")
    return cpus


def _read_memory(option: str, text: str) -> int:
    limits = f"{MIN_MEMORY_BYTES // MIB} MiB to {MAX_MEMORY_BYTES >> 40} TiB"
    try:
        size_bytes = keyvalue.parse(option, text, (_SIZE,))[_SIZE]
    except UsageError as error:
        raise UsageError(f"{error} (memory is {limits})") from None
    if not MIN_MEMORY_BYTES <= size_bytes <= MAX_MEMORY_BYTES:
        raise ConfigError(f"{option}: {text} is outside the limits, {limits}")
    if size_bytes % PAGE_BYTES:
        raise ConfigError(f"{option}: {text} is not a multiple of {PAGE_BYTES} bytes")
    return size_bytes


PARAMS: Final = text_option(
    "-p --params", "TEXT", "append to the kernel command line", repeatable=True
)
CPUS: Final = Option("-c --cpus", "N", f"vCPUs, 1 to {MAX_CPUS} (1)", _read_cpus)
MEMORY: Final = Option(
    "-m --mem", "SIZE", "guest memory in MiB, or with a suffix k, m, g or t (256)", _read_memory
)
INITRD: Final = text_option("-i --initrd", "PATH", "initial RAM disk")
SOCKET: Final = text_option(
    "-s --socket", "PATH", "control socket; in a directory it is called crosvm-PID.sock"
)
NAME: Final = text_option("--name", "NAME", "name of the monitor process, as ps shows it (crosvm)")
POLICY_DIR: Final = text_option(
    "--seccomp-policy-dir", "DIR", "take the seccomp policies from here, not from the package"
)
LOG_FAILURES: Final = switch(
    "--seccomp-log-failures", "log denied system calls instead of ending the device (unsafe)"
)
CGROUP: Final = text_option(
    "--cgroup", "PATH", "limit the devices in groups of cgroup v2 below this one; none: in none"
)
NO_SANDBOX: Final = switch("--disable-sandbox", "run the devices unconfined (unsafe)")
MULTIPROCESS: Final = switch("-u --multiprocess", "one process per device; always so, accepted")

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


def _run(arguments: Arguments, settings: GlobalSettings) -> int:
    config = build_config(arguments, extended_status=settings.extended_status)
    from crosvm_py import log
    from crosvm_py.exit_status import exit_status
    from crosvm_py.run import run_vm

    log.configure(settings.syslog_tag if settings.syslog else None)
    return exit_status(run_vm(config), extended=config.extended_status)


COMMAND: Final = Command(
    "run",
    "boot a virtual machine",
    OPTIONS,
    Positional("KERNEL", "ELF vmlinux or bzImage"),
    _run,
)
