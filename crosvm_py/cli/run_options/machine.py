# SPDX-License-Identifier: BSD-3-Clause
"""The machine on the command line: processors and memory."""

from __future__ import annotations

from crosvm_py.cli.grammar import keyvalue
from crosvm_py.cli.grammar.options import Option, OptionGroup, switch
from crosvm_py.cli.grammar.scanner import parse_number
from crosvm_py.config import (
    ACPI,
    DIMM_STEP_BYTES,
    MAX_CPUS,
    MAX_HOST_CPUS,
    MAX_MEMORY_BYTES,
    MIN_MEMORY_BYTES,
    POOL_PAGE_BYTES,
    VIRTIO_MEM,
    CpuSpec,
)
from sys_util.errors import ConfigError, UsageError
from sys_util.typing import TYPE_CHECKING, Final, NamedTuple, TypeAlias

if TYPE_CHECKING:
    from crosvm_py.cli.grammar.options import Arguments

MIB: Final = 1 << 20
PAGE_BYTES: Final = 4096
DEFAULT_MEMORY_BYTES: Final = 256 * MIB

_NUM_CORES: Final = keyvalue.integer("num-cores", "number of vCPUs", 1)
_MAX_CORES: Final = keyvalue.integer("max", "most vCPUs that there can be later", 0)
_SIZE: Final = keyvalue.size("size", "memory, in MiB or with a suffix", DEFAULT_MEMORY_BYTES, MIB)
_MAX: Final = keyvalue.size(
    "max", "to how much it can grow while the guest runs", 0, MIB, shown="SIZE: it cannot"
)
_METHOD: Final = keyvalue.choice(
    "hotplug-method", "how it grows: as modules, or by virtio-mem", (ACPI, VIRTIO_MEM), ACPI
)
_POOL: Final = keyvalue.flag("hugepages", "huge pages from the host's pool (hugetlbfs)")
_POOL_SIZE: Final = keyvalue.size(
    "hugepage-size", "size of one of them", 0, shown="2m where there are hugepages"
)
_PREFAULT: Final = keyvalue.flag("prefault", "take all of it from the host at the start")
_HUGE_PAGES: Final = keyvalue.flag("thp", "huge pages where the host can make them", default=True)


# The processors of each vCPU, by its number.
Affinity: TypeAlias = "tuple[tuple[int, tuple[int, ...]], ...]"


class MemoryOption(NamedTuple):
    """The value of ``--mem``."""

    size_bytes: int = DEFAULT_MEMORY_BYTES
    huge_pages: bool = True
    hotplug_bytes: int = 0
    hotplug_method: str = ACPI
    pool_page_bytes: int = 0
    prefault: bool = False


class CpusOption(NamedTuple):
    """The value of ``--cpus``."""

    vcpus: int = 1
    spec: CpuSpec = CpuSpec()


def _read_cpus(option: str, text: str) -> CpusOption:
    try:
        values = keyvalue.parse(option, text, (_NUM_CORES, _MAX_CORES))
    except UsageError as error:
        raise UsageError(f"{error} (1 to {MAX_CPUS} vCPUs)") from None
    cpus, most = values[_NUM_CORES], values[_MAX_CORES]
    for count in (cpus, most or cpus):
        if not 1 <= count <= MAX_CPUS:
            raise ConfigError(f"{option}: {count} vCPUs are not in 1..{MAX_CPUS}")
    if most and most < cpus:
        raise ConfigError(f"{option}: max={most} is less than the {cpus} vCPUs of the start")
    return CpusOption(cpus, CpuSpec(most))


def _read_affinity(option: str, text: str) -> Affinity:
    """Read ``0,2-3`` for all vCPUs, or ``0=2-3:1=4`` for some."""
    if "=" not in text:
        processors = _processors(option, text)
        return tuple((vcpu, processors) for vcpu in range(MAX_CPUS))
    found: dict[int, tuple[int, ...]] = {}
    for part in text.split(":"):
        vcpu, equals, words = part.partition("=")
        number = _number(option, vcpu)
        if not equals or number in found:
            raise UsageError(f"{option}: {part!r:.40} is not VCPU=PROCESSORS, once for each vCPU")
        if number >= MAX_CPUS:
            raise ConfigError(f"{option}: there is no vCPU {number}")
        found[number] = _processors(option, words)
    return tuple(found.items())


def _processors(option: str, text: str) -> tuple[int, ...]:
    found: set[int] = set()
    for part in text.split(","):
        first, dash, last = part.partition("-")
        low = _number(option, first)
        high = _number(option, last) if dash else low
        if high < low:
            raise UsageError(f"{option}: {part!r:.40} ends before it begins")
        if high >= MAX_HOST_CPUS:
            raise ConfigError(f"{option}: no host has a processor {high}")
        found.update(range(low, high + 1))
    return tuple(sorted(found))


def _number(option: str, text: str) -> int:
    try:
        return parse_number(text)
    except ValueError as error:
        raise UsageError(f"{option}: {text!r:.40}: {error}") from None


def _read_memory(option: str, text: str) -> MemoryOption:
    limits = f"{MIN_MEMORY_BYTES // MIB} MiB to {MAX_MEMORY_BYTES >> 40} TiB"
    try:
        values = keyvalue.parse(option, text, _MEMORY_FIELDS)
    except UsageError as error:
        raise UsageError(f"{error} (memory is {limits})") from None
    size_bytes = values[_SIZE]
    if not MIN_MEMORY_BYTES <= size_bytes <= MAX_MEMORY_BYTES:
        raise ConfigError(f"{option}: {text} is outside the limits, {limits}")
    if size_bytes % PAGE_BYTES:
        raise ConfigError(f"{option}: {text} is not a multiple of {PAGE_BYTES} bytes")
    hotplug_bytes = max(values[_MAX] - size_bytes, 0) if values[_MAX] else 0
    if values[_MAX] and values[_MAX] < size_bytes:
        raise ConfigError(f"{option}: max is less than the size")
    if hotplug_bytes % DIMM_STEP_BYTES:
        raise ConfigError(
            f"{option}: max and size differ by {hotplug_bytes // MIB} MiB, which is not a multiple "
            f"of {DIMM_STEP_BYTES // MIB} MiB"
        )
    if values[_MAX] > MAX_MEMORY_BYTES:
        raise ConfigError(f"{option}: max is outside the limits, {limits}")
    return MemoryOption(
        size_bytes,
        values[_HUGE_PAGES],
        hotplug_bytes,
        values[_METHOD],
        _pool(option, values[_POOL], values[_POOL_SIZE], growing=hotplug_bytes > 0),
        values[_PREFAULT],
    )


def _pool(option: str, wanted: bool, page_bytes: int, *, growing: bool) -> int:
    """Return the size of the huge pages of a pool, or 0."""
    if page_bytes and not wanted:
        raise ConfigError(f"{option}: hugepage-size needs hugepages")
    if page_bytes & (page_bytes - 1):
        raise ConfigError(f"{option}: hugepage-size {page_bytes} is not a power of two")
    if wanted and growing:
        raise ConfigError(f"{option}: hugepages and max exclude each other")
    return (page_bytes or POOL_PAGE_BYTES) if wanted else 0


_MEMORY_FIELDS: Final = (_SIZE, _MAX, _METHOD, _POOL, _POOL_SIZE, _PREFAULT, _HUGE_PAGES)


def _read_bool(option: str, text: str) -> bool:
    if text not in ("true", "false"):
        raise UsageError(f"{option}: {text!r:.40} is neither true nor false")
    return text == "true"


CPUS: Final = Option(
    "-c --cpus",
    "N[,max=M]",
    f"number of vCPUs, 1 to {MAX_CPUS}; with max, crosvm resize can add others, up to that number",
    _read_cpus,
    default="1",
)
AFFINITY: Final = Option(
    "--cpu-affinity",
    "CPUS",
    "on which processors of the host vCPUs run: 0,2-3 for all, 0=2-3:1=4 for each one named",
    _read_affinity,
)
MEMORY: Final = Option(
    "-m --mem",
    "SIZE[,max=SIZE][,KEY=VALUE…]",
    "memory of the guest in MiB, or with a suffix k, m, g or t; crosvm resize --memory makes it "
    "larger, up to max, as memory modules, or with hotplug-method=virtio-mem also smaller again; "
    "with thp=false all of it has pages of 4 KiB",
    _read_memory,
    default=str(DEFAULT_MEMORY_BYTES // MIB),
)
CORE_SCHEDULING: Final = Option(
    "--core-scheduling",
    "true|false",
    "run each vCPU on a core whose other hardware threads are idle meanwhile, so that nothing "
    "there can be spied on",
    _read_bool,
    default="true where the host can do it",
)
PER_VM: Final = switch(
    "--per-vm-core-scheduling",
    "let the vCPUs of this VM share cores with one another: faster, and the guest has to see to "
    "what its own programs can spy out",
)

REBOOT: Final = switch(
    "--reboot",
    "boot the guest again, in the same process, when it resets its machine; otherwise a reset ends "
    "the run (status 32 with --extended-status); kernel and initrd stay open for that, and a "
    "kernel that was unpacked stays in memory",
)
WATCHDOG: Final = switch(
    "--watchdog",
    "give the guest a watchdog timer (ACPI WDAT; Linux has the driver wdat_wdt), which resets it "
    "when it has started the timer and then does not answer; without --reboot that ends the run "
    "(status 36 with --extended-status)",
)


def per_vm_core_scheduling(arguments: Arguments) -> bool:
    """Return whether the vCPUs of the VM may share cores with each other.

    Raises:
        ConfigError: core scheduling is turned off, so they share cores with everything.
    """
    if arguments.has(PER_VM) and arguments.get(CORE_SCHEDULING) is False:
        raise ConfigError(f"{PER_VM.name}: there is none with {CORE_SCHEDULING.name}=false")
    return arguments.has(PER_VM)


GROUP: Final = OptionGroup(
    "Processors and memory",
    (CPUS, AFFINITY, MEMORY, CORE_SCHEDULING, PER_VM, REBOOT, WATCHDOG),
    examples=("crosvm run -c 4 -m 2g vmlinux",),
)
