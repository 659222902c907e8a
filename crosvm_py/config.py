# SPDX-License-Identifier: BSD-3-Clause
"""The configuration of ``crosvm run``: checked values, no open resources."""

from __future__ import annotations

from crosvm_py.care import DEFAULT_LIMIT, DEFAULT_TIMEOUT_SECONDS
from devices.legacy_ports import DEBUGCON_PORT
from devices.virtio.rate_limiter import RateLimits
from sys_util.facts import fact
from sys_util.typing import TYPE_CHECKING, Final, NamedTuple

if TYPE_CHECKING:
    from crosvm_py.care import RestartLimit
    from devices.virtio.balloon.device import BalloonSpec
    from devices.virtio.block.spec import BlockSpec
    from devices.virtio.rng.device import RngSpec
    from devices.virtio.vsock.common import VsockSpec
    from sys_util.landlock import LandlockRule


# A local APIC id of x86 has 8 bits. 255 means all of them, and the I/O APIC needs one.
MAX_CPUS: Final = 254
# As many as Linux can have on any architecture (NR_CPUS).
MAX_HOST_CPUS: Final = 8192
# The boot tables and a small bare-metal guest need so much.
MIN_MEMORY_BYTES: Final = 4 << 20
# One KVM memory slot has at most 2^31 pages; half of that leaves room below 46 address bits.
MAX_MEMORY_BYTES: Final = 4 << 40

# Memory that is added comes in multiples of this, the size of a memory section of Linux.
DIMM_STEP_BYTES: Final = 128 << 20

# The huge pages of a pool, where nobody names another size.
POOL_PAGE_BYTES: Final = 2 << 20
# How memory is added.
ACPI: Final = "acpi"
VIRTIO_MEM: Final = "virtio-mem"

# /dev/vda to /dev/vdz; the PCI bus has slots for 31 devices.
MAX_DISKS: Final = 26
MAX_CARDS: Final = 8

# ACPI's tables have no room for many more. A segment gets at least 1/256 of the addresses for BARs,
# where 32 devices have room.
MAX_PCI_SEGMENTS: Final = 16
MIN_PCI_SHARE: Final = 256

# The ``hardware`` of ``--serial`` for ports of the virtio console.
VIRTIO_CONSOLE: Final = "virtio-console"


@fact
class SerialSpec:
    """``--serial``: one UART, debug console or virtio port, and its output and input on the host.

    ``type`` is stdout, file, sink, syslog, unix, unix-stream or pty. ``hardware`` is serial (COM
    ``num``), debugcon or virtio-console. ``name`` is the name of a virtio port in the guest.
    """

    type: str
    hardware: str = "serial"
    num: int = 1
    path: str | None = None
    input: str | None = None
    console: bool = False
    earlycon: bool = False
    stdin: bool = False
    debugcon_port: int = DEBUGCON_PORT
    name: str | None = None
    input_unix_stream: bool = False

    def place(self) -> str:
        """Return the name of the port's place in the machine, for people."""
        if self.hardware == "serial":
            return f"COM{self.num}"
        if self.hardware == VIRTIO_CONSOLE:
            return f"virtio port {self.num}"
        return f"port {self.debugcon_port:#x}"


@fact
class Forward:
    """A port of the host, at one ``address`` or all (""), that is forwarded to the guest."""

    protocol: str  # tcp or udp
    address: str
    host_port: int
    guest_port: int


@fact
class NetworkSpec:
    """One network card. ``option`` is the option as messages should name it.

    Exactly one of ``tap_name``, ``tap_fds``, ``host_ip`` and ``user`` is set: it says what the card
    is connected to. With ``makes`` a TAP of the name is made if there is none, one of a free name
    if none is given, and ``host_ip`` is for that TAP. If ``mac`` is empty or ``mtu`` 0, we choose a
    value. With ``vhost`` the kernel moves the frames.
    """

    option: str = "--net"
    tap_name: str = ""
    tap_fds: tuple[int, ...] = ()
    host_ip: bytes = b""
    netmask: bytes = b""
    user: bool = False
    forwards: tuple[Forward, ...] = ()
    host_loopback: bool = False
    mac: bytes = b""
    pairs: int = 1
    mtu: int = 0
    limits: RateLimits = RateLimits()
    vhost: bool = False
    makes: bool = False


class Topology(NamedTuple):
    """How vCPUs are arranged: how many of one level are in the next.

    All threads of a core follow each other. An APIC id has a field of bits for each level, as wide
    as the level needs (Intel SDM volume 3, §9.9), so ids have gaps where a level has no power of
    two of parts.
    """

    threads: int
    cores: int
    dies: int
    packages: int

    @property
    def per_core_bits(self) -> int:
        """Bits of an APIC id that tell threads of one core apart."""
        return (self.threads - 1).bit_length()

    @property
    def per_die_bits(self) -> int:
        """Bits that tell threads of one die apart."""
        return self.per_core_bits + (self.cores - 1).bit_length()

    @property
    def per_package_bits(self) -> int:
        """Bits that tell threads of one package apart."""
        return self.per_die_bits + (self.dies - 1).bit_length()

    @property
    def per_die(self) -> int:
        """Threads of one die."""
        return self.threads * self.cores

    @property
    def per_package(self) -> int:
        """Threads of one package."""
        return self.per_die * self.dies

    def apic_id(self, index: int) -> int:
        """Return the APIC id of the vCPU with this number."""
        core, thread = divmod(index, self.threads)
        die, core = divmod(core, self.cores)
        package, die = divmod(die, self.dies)
        return (
            package << self.per_package_bits
            | die << self.per_die_bits
            | core << self.per_core_bits
            | thread
        )


def one_package(cpus: int) -> Topology:
    """Return the arrangement where nobody asks for another: each vCPU is a core."""
    return Topology(1, cpus, 1, 1)


@fact
class CpuSpec:
    """More about vCPUs than how many there are at the start.

    Args:
        most: how many there can be; none can come if it is no more than those of the start.
        topology: how they are arranged; ``None`` for one package of cores.
        address_bits: the most bits of a physical address; 0 for as many as the host has.
        affinity: the processors of the host on which a vCPU runs, by its number.
    """

    most: int = 0
    topology: Topology | None = None
    address_bits: int = 0
    affinity: tuple[tuple[int, tuple[int, ...]], ...] = ()


class MemoryZone(NamedTuple):
    """A part of the memory of the start. The zones lie behind each other, and are all of it.

    Its pages are those of the NUMA node ``host_node`` of the host, or of any node.
    """

    name: str
    size_bytes: int
    host_node: int | None = None


class NumaNode(NamedTuple):
    """A NUMA node of the guest, and what belongs to it.

    ``zones`` are names. ``distances`` has (another node, its distance from this one).
    """

    number: int
    cpus: tuple[int, ...] = ()
    zones: tuple[str, ...] = ()
    distances: tuple[tuple[int, int], ...] = ()
    pci_segments: tuple[int, ...] = ()


class ApiSocketSpec(NamedTuple):
    """``--api-socket``: where the socket is made, or an inherited one that listens already."""

    path: str = ""
    fd: int = -1


@fact
class RunConfig:
    """A whole VM.

    Args (those that need more than their name):
        disks: in the order of the command line; the first is /dev/vda.
        serial: every COM port is in it; those that the user did not ask for are sinks.
        device_restarts: how often each device that fails gets a new process.
        cgroup: the group in which groups for devices are made, "none", or ``None`` for "if
            possible".
        core_scheduling: whether vCPUs get cores of their own; ``None`` for "if possible".
        per_vm_core_scheduling: the vCPUs may share cores with each other.
        huge_pages: guest memory has them where the host can make them.
        pci_weights: for each PCI segment, its share of the addresses below 4 GiB.
        pci_slots: the slots of devices, by their names, as ``devices.pci.address`` numbers them;
            the others get the lowest of segment 0.
        pool_page_bytes: memory has huge pages of this size from the host's pool; 0 for none.
        prefault: all memory is taken from the host at the start.
        hotplug_bytes: how much memory can be added while the guest runs.
        hotplug_method: how: as modules (``ACPI``), or by ``VIRTIO_MEM``.
        hotplugged_bytes: how much of it the guest is to plug at the start, with ``VIRTIO_MEM``.
        reboots: a reset boots the guest again; otherwise it ends the run.
        watchdog: there is a timer that resets a guest that does not ping it.
        landlock: what may be opened for clients while the guest runs; ``None`` for everything.
        zones: the parts of memory; none where nobody divides it.
        numa: the NUMA nodes of the guest, with one of number 0; none where it is not to have any.
        guest_files: kernel and initrd of a guest's folder; links are not followed there.
    """

    kernel: str
    params: tuple[str, ...]
    cpus: int
    memory_bytes: int
    initrd: str | None
    disks: tuple[BlockSpec, ...]
    serial: tuple[SerialSpec, ...]
    rng: RngSpec | None
    socket: str | None
    name: str
    seccomp_policy_dir: str | None
    seccomp_log_failures: bool
    sandbox: bool
    extended_status: bool
    balloon: BalloonSpec | None = None
    vsock: VsockSpec | None = None
    networks: tuple[NetworkSpec, ...] = ()
    device_restarts: RestartLimit = DEFAULT_LIMIT
    device_timeout_seconds: float = DEFAULT_TIMEOUT_SECONDS
    cgroup: str | None = None
    core_scheduling: bool | None = None
    per_vm_core_scheduling: bool = False
    guest_files: tuple[str, ...] = ()
    huge_pages: bool = True
    pool_page_bytes: int = 0
    prefault: bool = False
    hotplug_bytes: int = 0
    hotplug_method: str = ACPI
    hotplugged_bytes: int = 0
    api_socket: ApiSocketSpec | None = None
    pci_weights: tuple[int, ...] = (1,)
    pci_slots: tuple[tuple[str, int], ...] = ()
    reboots: bool = False
    watchdog: bool = False
    landlock: tuple[LandlockRule, ...] | None = None
    cpu_spec: CpuSpec = CpuSpec()
    zones: tuple[MemoryZone, ...] = ()
    numa: tuple[NumaNode, ...] = ()

    @property
    def max_cpus(self) -> int:
        """How many vCPUs there can be."""
        return max(self.cpus, self.cpu_spec.most)

    @property
    def has_virtio_mem(self) -> bool:
        """Whether there is a device of virtio-mem."""
        return self.hotplug_bytes > 0 and self.hotplug_method == VIRTIO_MEM

    def root_parameter(self) -> str | None:
        """Return the kernel parameters for the root disk, or None if there is none."""
        for index, disk in enumerate(self.disks):
            if disk.root:
                return f"root=/dev/{disk_name(index)} {'ro' if disk.read_only else 'rw'}"
        return None


def disk_name(index: int) -> str:
    """Return the guest's name of the virtio disk with this index: vda, vdb, … vdz, vdaa."""
    letters = ""
    while index >= 0:
        letters = chr(ord("a") + index % 26) + letters
        index = index // 26 - 1
    return f"vd{letters}"
