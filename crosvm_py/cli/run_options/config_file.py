# SPDX-License-Identifier: BSD-3-Clause
"""``--config``: the VM of a file, with Cloud Hypervisor's schema. Other options come on top."""

from __future__ import annotations

import os

from crosvm_py.cli.grammar.options import OptionGroup, text_option
from crosvm_py.cli.run_options import balloon, machine, net, serial, vsock
from crosvm_py.cli.run_options.boot import INITRD
from crosvm_py.config import MAX_DISKS
from sys_util.errors import ConfigError
from sys_util.facts import replace
from sys_util.log import get_logger
from sys_util.typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from crosvm_py.cli.grammar.options import Arguments, Option
    from crosvm_py.config import CpuSpec, RunConfig
    from crosvm_py.vm_config.schema import VmConfig
    from devices.virtio.balloon.device import BalloonSpec

log = get_logger("crosvm.run")

CONFIG: Final = text_option(
    "--config",
    "PATH",
    "the VM that a JSON file describes, as the body of Cloud Hypervisor's vm.create does; crosvm "
    "config schema prints the schema",
)
GROUP: Final = OptionGroup(
    "Configuration file",
    (CONFIG,),
    examples=("crosvm run --config vm.json -c 4",),
    note="Options and KERNEL replace what the file says, except that disks, cards and kernel "
    "parameters are added to those of the file.",
)


def parse_file(
    option: str, path: str, *, sandbox: bool = True, log_failures: bool = False
) -> VmConfig:
    """Return what a file says, which a process of its own reads. ``option`` names it in messages.

    Raises:
        SchemaError: it does not fit the schema; the message does not name the file.
        ConfigError: it cannot be read.
    """
    try:
        from crosvm_py.file_parser.config import read_config
    except ImportError as error:
        remedy = "needs msgspec: pip install 'crosvm-py[ch]'"
        raise ConfigError(f"{option}: {remedy} ({error})") from None
    from crosvm_py.vm_config.json_text import MAX_BYTES

    text = _read(option, path, MAX_BYTES + 1)
    return read_config(f"{option} {path}", text, sandbox=sandbox, log_failures=log_failures)


def _read(option: str, path: str, most: int) -> bytes:
    """Read up to ``most`` bytes of a file, or of a pipe until its other end is closed."""
    try:
        with open(path, "rb", opener=_open) as file:
            return file.read(most)
    except (OSError, ValueError) as error:  # ValueError: a zero byte in the path
        raise ConfigError(f"{option} {path!r}"[:200]) from error


def _open(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_CLOEXEC | os.O_NOCTTY)


def config_from_file(path: str, *, sandbox: bool, log_failures: bool) -> RunConfig:
    """Return the VM of a file; keys that have no effect are logged.

    Raises:
        ConfigError: the file cannot be used; the message names it and the key.
    """
    from crosvm_py.vm_config.errors import SchemaError, UnfitConfigError

    try:
        config = parse_file(CONFIG.name, path, sandbox=sandbox, log_failures=log_failures)
        from crosvm_py.vm_config.to_run import run_config
        from crosvm_py.vm_config.unsupported import ignored

        made = run_config(config)
    except (SchemaError, UnfitConfigError) as error:
        raise ConfigError(f"{CONFIG.name} {path}: {error}") from None
    for line in ignored(config):
        log.warning("%s: %s", CONFIG.name, line)
    return made


def on_top_of(base: RunConfig, made: RunConfig, arguments: Arguments) -> RunConfig:
    """Return the VM of a file with what the command line says.

    Args:
        base: the VM of the file.
        made: the VM of the command line alone.

    Raises:
        ConfigError: they make no sense together.
    """

    def given(*options: Option[object]) -> bool:
        return any(arguments.has(option) for option in options)

    if base.zones and given(machine.MEMORY):
        raise ConfigError("--mem: the file of --config has memory zones: change their sizes there")
    asked = made if given(machine.MEMORY) else base
    processors = made if given(machine.CPUS) else base
    disks = base.disks + made.disks
    if len(disks) > MAX_DISKS:
        raise ConfigError(f"--config: {len(disks)} disks are above the limit of {MAX_DISKS}")
    scheduling = made if given(machine.CORE_SCHEDULING, machine.PER_VM) else base
    merged = replace(
        made,
        kernel=made.kernel if arguments.positional else base.kernel,
        params=base.params + made.params,
        cpus=processors.cpus,
        cpu_spec=_cpu_spec(base, made, arguments),
        memory_bytes=asked.memory_bytes,
        huge_pages=asked.huge_pages,
        hotplug_bytes=asked.hotplug_bytes,
        hotplug_method=asked.hotplug_method,
        pool_page_bytes=asked.pool_page_bytes,
        prefault=asked.prefault,
        hotplugged_bytes=asked.hotplugged_bytes,
        initrd=made.initrd if given(INITRD) or made.guest_files else base.initrd,
        disks=disks,
        networks=net.together(base.networks + made.networks),
        serial=made.serial if given(serial.SERIAL) else base.serial,
        balloon=_balloon(base, made, arguments),
        vsock=made.vsock if given(*vsock.OPTIONS) else base.vsock,
        core_scheduling=scheduling.core_scheduling,
        per_vm_core_scheduling=scheduling.per_vm_core_scheduling,
        landlock=base.landlock if made.landlock is None else made.landlock,
        watchdog=base.watchdog or made.watchdog,
        pci_weights=base.pci_weights,
        pci_slots=base.pci_slots,
        zones=base.zones,
        numa=base.numa,
    )
    if merged.balloon is not None and merged.balloon.size_bytes > merged.memory_bytes:
        raise ConfigError("--config: balloon.size is more than the memory")
    return merged


def _cpu_spec(base: RunConfig, made: RunConfig, arguments: Arguments) -> CpuSpec:
    spec = made.cpu_spec if arguments.has(machine.CPUS) else base.cpu_spec
    pinned = made if arguments.has(machine.AFFINITY) else base
    return replace(spec, affinity=pinned.cpu_spec.affinity)


def _balloon(base: RunConfig, made: RunConfig, arguments: Arguments) -> BalloonSpec | None:
    options = (balloon.BALLOON, balloon.REPORTING, balloon.NO_BALLOON)
    return made.balloon if any(arguments.has(option) for option in options) else base.balloon
