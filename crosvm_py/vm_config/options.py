# SPDX-License-Identifier: BSD-3-Clause
"""Cloud Hypervisor's options for a VM, and how they become its configuration."""

from __future__ import annotations

from msgspec import structs

from crosvm_py.vm_config import devices, machine
from crosvm_py.vm_config.errors import SchemaError
from crosvm_py.vm_config.option_grammar import keys, option_text, parse_option
from crosvm_py.vm_config.option_split import pairs
from crosvm_py.vm_config.schema import DEFAULT_MEMORY_BYTES, DEFAULT_RNG_SOURCE, VmConfig
from sys_util.typing import TYPE_CHECKING, Final, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from crosvm_py.vm_config.field_types import Record


class ValueOption(NamedTuple):
    """An option with keys: the class of its object, and the key of ``VmConfig`` that gets it.

    ``defaults`` are values that the object needs and the option does not. Options that are
    ``many`` may be repeated and take several values.
    """

    kind: type[Record]
    key: str
    text: str
    many: bool = False
    defaults: Mapping[str, object] = {}


VALUES: Final[dict[str, ValueOption]] = {
    "--cpus": ValueOption(
        machine.CpusConfig, "cpus", "the vCPUs", defaults={"boot_vcpus": 1, "max_vcpus": 1}
    ),
    "--memory": ValueOption(
        machine.MemoryConfig, "memory", "the memory", defaults={"size": DEFAULT_MEMORY_BYTES}
    ),
    "--memory-zone": ValueOption(machine.MemoryZoneConfig, "zones", "a part of memory", many=True),
    "--platform": ValueOption(machine.PlatformConfig, "platform", "PCI segments, SMBIOS"),
    "--disk": ValueOption(devices.DiskConfig, "disks", "a disk", many=True),
    "--net": ValueOption(devices.NetConfig, "net", "a network card", many=True),
    "--rng": ValueOption(
        devices.RngConfig, "rng", "the entropy device", defaults={"src": DEFAULT_RNG_SOURCE}
    ),
    "--balloon": ValueOption(devices.BalloonConfig, "balloon", "the memory balloon"),
    "--fs": ValueOption(devices.FsConfig, "fs", "a shared directory", many=True),
    "--generic-vhost-user": ValueOption(
        devices.GenericVhostUserConfig, "generic_vhost_user", "any vhost-user device", many=True
    ),
    "--pmem": ValueOption(devices.PmemConfig, "pmem", "persistent memory", many=True),
    "--serial": ValueOption(devices.SerialConfig, "serial", "the serial port"),
    "--console": ValueOption(devices.ConsoleConfig, "console", "the virtio console"),
    "--debug-console": ValueOption(
        devices.DebugConsoleConfig, "debug_console", "a console of one I/O port"
    ),
    "--device": ValueOption(devices.DeviceConfig, "devices", "a VFIO device", many=True),
    "--user-device": ValueOption(
        devices.UserDeviceConfig, "user_devices", "a vfio-user device", many=True
    ),
    "--vdpa": ValueOption(devices.VdpaConfig, "vdpa", "a vDPA device", many=True),
    "--vsock": ValueOption(devices.VsockConfig, "vsock", "sockets between host and guest"),
    "--rtc": ValueOption(devices.RtcConfig, "rtc", "a clock (virtio-rtc)"),
    "--tpm": ValueOption(devices.TpmConfig, "tpm", "a TPM that swtpm serves"),
    "--numa": ValueOption(machine.NumaConfig, "numa", "a NUMA node of the guest", many=True),
    "--pci-segment": ValueOption(
        machine.PciSegmentConfig, "pci_segments", "weights of a PCI segment", many=True
    ),
    "--rate-limit-group": ValueOption(
        devices.RateLimiterGroupConfig, "rate_limit_groups", "limits that disks share", many=True
    ),
    "--landlock-rules": ValueOption(
        machine.LandlockConfig, "landlock_rules", "a path for Landlock", many=True
    ),
}
# Options without a value, and those whose value is a text of the payload.
FLAGS: Final = {
    "--watchdog": "watchdog",
    "--pvpanic": "pvpanic",
    "--landlock": "landlock_enable",
}
PAYLOAD: Final = {
    "--kernel": "kernel",
    "--firmware": "firmware",
    "--initramfs": "initramfs",
    "--cmdline": "cmdline",
}
FLAG_HELP: Final = {
    "--watchdog": "a watchdog, which resets a guest that does not answer",
    "--pvpanic": "a device by which the guest tells that it has panicked",
    "--landlock": "confine what is opened to the files of the configuration and the rules",
}
PAYLOAD_HELP: Final = {
    "--kernel": "the kernel that is booted",
    "--firmware": "the firmware that is booted instead of a kernel",
    "--initramfs": "the initial RAM disk",
    "--cmdline": "the kernel parameters",
}


def parse_value(option: str, text: str) -> Record:
    """Return the object that one value of an option in ``VALUES`` says.

    Raises:
        SchemaError: names the option and the key.
    """
    row = VALUES[option]
    made = parse_option(option, text, row.kind, row.defaults)
    if isinstance(made, machine.CpusConfig) and "max" not in _given(option, text):
        return structs.replace(made, max_vcpus=made.boot_vcpus)
    return made


def _given(option: str, text: str) -> Iterable[str]:
    return pairs(option, text, tuple(keys(machine.CpusConfig)))


def build_config(given: Mapping[str, list[str]]) -> VmConfig:
    """Return the configuration for options and their values; flags have none.

    Raises:
        SchemaError: an option cannot be read, or is given more than once.
    """
    values: dict[str, object] = {FLAGS[name]: True for name in given if name in FLAGS}
    payload = {PAYLOAD[name]: _only(name, given[name]) for name in given if name in PAYLOAD}
    if payload:
        values["payload"] = machine.PayloadConfig(**payload)
    for name, row in VALUES.items():
        if name in given and row.many:
            values[row.key] = tuple(parse_value(name, text) for text in given[name])
        elif name in given:
            values[row.key] = parse_value(name, _only(name, given[name]))
    zones = values.pop("zones", None)
    config = VmConfig(**values)  # type: ignore[arg-type]  # each of its option's class
    if zones is not None:
        config = structs.replace(config, memory=structs.replace(config.memory, zones=zones))
    return config


def _only(option: str, texts: list[str]) -> str:
    if len(texts) != 1:
        raise SchemaError(option, "takes one value")
    return texts[0]


def options_of(config: VmConfig) -> list[str]:
    """Return a command line that says the same as ``config``, without defaults.

    Raises:
        SchemaError: no option can say it.
    """
    words: list[str] = []
    for option, name in PAYLOAD.items():
        text = getattr(config.payload, name, None)
        words += [] if text is None else [option, text]
    default = VmConfig()
    for option, row in VALUES.items():
        holder, base = (config.memory, default.memory) if row.key == "zones" else (config, default)
        found = getattr(holder, row.key)
        if found is None or found == getattr(base, row.key):
            continue
        for record in found if row.many else (found,):
            words += [option, option_text(record)]
    return words + [option for option, key in FLAGS.items() if getattr(config, key)]
