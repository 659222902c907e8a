# SPDX-License-Identifier: BSD-3-Clause
"""Values that the schema allows and this program does not."""

from __future__ import annotations

from crosvm_py.config import (
    DIMM_STEP_BYTES,
    MAX_CARDS,
    MAX_CPUS,
    MAX_DISKS,
    MAX_HOST_CPUS,
    MAX_MEMORY_BYTES,
    MIN_MEMORY_BYTES,
    Topology,
)
from crosvm_py.vm_config.addresses import ipv4_bytes, mac_bytes
from crosvm_py.vm_config.machine_rules import ram_bytes
from crosvm_py.vm_config.pci_slots import slot_problems
from crosvm_py.vm_config.problem import FAILED, Problem, when
from devices.virtio.net.features import MAX_PAIRS
from devices.virtio.rate_limiter import RateLimits
from sys_util.errors import ConfigError
from sys_util.typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterator

    from crosvm_py.vm_config.devices import NetConfig, RateLimiterConfig
    from crosvm_py.vm_config.machine import CpusConfig
    from crosvm_py.vm_config.schema import VmConfig

_PAGE_BYTES: Final = 4096
# Every processor that we know has so many, and addresses below 4 GiB that are not memory.
_MIN_ADDRESS_BITS: Final = 36
_HOLE_BYTES: Final = 1 << 30
_MIB: Final = 1 << 20
_MAX_MTU: Final = 65521  # what an Ethernet header leaves of the 64 KiB of a TAP's frame
_MAX_NAME_BYTES: Final = 15  # of a network interface: IFNAMSIZ without the zero


def limit_problems(config: VmConfig) -> Iterator[Problem]:
    """Return what is too much, too little or odd for this program."""
    cpus = config.cpus.boot_vcpus
    yield from when(cpus > MAX_CPUS, "cpus.boot_vcpus", f"{cpus} vCPUs are more than {MAX_CPUS}")
    size = ram_bytes(config.memory)
    limits = f"{MIN_MEMORY_BYTES // _MIB} MiB to {MAX_MEMORY_BYTES >> 40} TiB"
    if not MIN_MEMORY_BYTES <= size <= MAX_MEMORY_BYTES:
        yield _problem("memory.size", f"{size} bytes are outside the limits, {limits}")
    yield from _whole_pages("memory.size", size)
    yield from _cpus(config)
    yield from _growth(size, config.memory.hotplug_size or 0)
    plugged = config.memory.hotplugged_size or 0
    if plugged % DIMM_STEP_BYTES:
        yield _problem(
            "memory.hotplugged_size",
            f"{plugged} bytes is not a multiple of {DIMM_STEP_BYTES // _MIB} MiB",
        )
    if config.balloon is not None:
        yield from _whole_pages("balloon.size", config.balloon.size)
    for key, most in (("disks", MAX_DISKS), ("net", MAX_CARDS)):
        devices = getattr(config, key) or ()
        if len(devices) > most:
            yield _problem(key, f"{len(devices)} are above the limit of {most}")
        for index, device in enumerate(devices):
            yield from _rates(f"{key}[{index}]", device.rate_limiter_config)
    for index, card in enumerate(config.net or ()):
        yield from _card(f"net[{index}]", card)
    if config.debug_console.iobase == 0:
        yield _problem("debug_console.iobase", "0 is not a port")
    yield from slot_problems(config)


def _growth(size: int, hotplug_size: int) -> Iterator[Problem]:
    place, step = "memory.hotplug_size", DIMM_STEP_BYTES
    if hotplug_size % step:
        yield _problem(place, f"{hotplug_size} bytes is not a multiple of {step // _MIB} MiB")
    if size + hotplug_size > MAX_MEMORY_BYTES:
        yield _problem(place, f"memory would be more than {MAX_MEMORY_BYTES >> 40} TiB")


def topology_of(config: CpusConfig) -> Topology | None:
    """Return how vCPUs are arranged, if the configuration says so."""
    found = config.topology
    if found is None:
        return None
    return Topology(
        found.threads_per_core, found.cores_per_die, found.dies_per_package, found.packages
    )


def _cpus(config: VmConfig) -> Iterator[Problem]:
    cpus, topology = config.cpus, topology_of(config.cpus)
    last = cpus.max_vcpus - 1
    is_served = topology is not None and topology.per_package and last < MAX_CPUS
    if topology is not None and is_served and topology.apic_id(last) >= MAX_CPUS:
        yield _problem("cpus.topology", f"it needs APIC ids beyond {MAX_CPUS - 1}")
    end = ram_bytes(config.memory) + (config.memory.hotplug_size or 0) + _HOLE_BYTES
    bits = cpus.max_phys_bits
    if bits < _MIN_ADDRESS_BITS or end > 1 << bits:
        yield _problem("cpus.max_phys_bits", f"{bits} bits are too few for all addresses")
    for index, pinned in enumerate(cpus.affinity or ()):
        place = f"cpus.affinity[{index}].host_cpus"
        if not pinned.host_cpus:
            yield _problem(place, "it names no processor")
        elif max(pinned.host_cpus) >= MAX_HOST_CPUS:
            yield _problem(place, f"no host has a processor {max(pinned.host_cpus)}")


def _problem(place: str, text: str) -> Problem:
    return Problem(place, text, FAILED)


def _whole_pages(place: str, size: int) -> Iterator[Problem]:
    if size % _PAGE_BYTES:
        yield _problem(place, f"{size} bytes is not a multiple of {_PAGE_BYTES}")


def rate_limits(config: RateLimiterConfig | None) -> RateLimits:
    """Return limits as devices have them."""
    if config is None:
        return RateLimits()
    values: list[int] = []
    for bucket in (config.bandwidth, config.ops):
        if bucket is None or not (bucket.size and bucket.refill_time):
            values += (0, 0, 0)
        else:
            values += (bucket.size, bucket.one_time_burst or 0, bucket.refill_time)
    return RateLimits(*values)


def _rates(place: str, config: RateLimiterConfig | None) -> Iterator[Problem]:
    try:
        rate_limits(config).check()
    except ConfigError as error:
        yield _problem(f"{place}.rate_limiter_config", str(error))


def _card(place: str, card: NetConfig) -> Iterator[Problem]:
    ends = [key for key in ("tap", "ip", "fds") if getattr(card, key)]
    if card.fds and len(ends) > 1:
        yield _problem(place, f"{' and '.join(ends)} exclude each other")
    pairs = card.num_queues // 2
    if pairs > MAX_PAIRS:
        yield _problem(f"{place}.num_queues", f"{pairs} pairs are more than {MAX_PAIRS}")
    if (card.mtu or 0) > _MAX_MTU:
        yield _problem(f"{place}.mtu", f"{card.mtu} is more than {_MAX_MTU}")
    mac = mac_bytes(card.mac or "")
    if mac is not None and (mac[0] & 1 or not any(mac)):
        yield _problem(f"{place}.mac", f"{card.mac} is not the address of one card")
    if card.tap is not None and not _is_interface(card.tap):
        yield _problem(f"{place}.tap", f"{card.tap!r:.40} is not the name of a network interface")
    yield from _network(place, card)


def _is_interface(name: str) -> bool:
    length = len(name.encode("utf-8", "replace"))
    return length <= _MAX_NAME_BYTES and name not in (".", "..") and not set(name) & set("/% \0")


def _network(place: str, card: NetConfig) -> Iterator[Problem]:
    address, netmask = ipv4_bytes(card.ip or ""), ipv4_bytes(card.mask or "")
    if address is None or netmask is None:
        return
    if address[0] in (0, 127) or address[0] >= 224:  # this network, loopback, multicast and above
        yield _problem(f"{place}.ip", f"{card.ip} is no address that a host on a network can have")
    hosts = int.from_bytes(netmask, "big") ^ 0xFFFF_FFFF
    if hosts & (hosts + 1) or not 1 <= hosts < 0xFFFF_FFFF:
        yield _problem(
            f"{place}.mask", f"{card.mask} is no netmask with room for a host and a guest"
        )
    elif hosts > 1 and int.from_bytes(address, "big") & hosts in (0, hosts):
        yield _problem(
            f"{place}.ip", f"{card.ip} is the network or broadcast address of its network"
        )
