# SPDX-License-Identifier: BSD-3-Clause
"""From the schema to what ``crosvm run`` runs, and back."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings

from crosvm_py.config import RunConfig, SerialSpec
from crosvm_py.vm_config.codec import decode
from crosvm_py.vm_config.errors import UnfitConfigError
from crosvm_py.vm_config.from_run import vm_config
from crosvm_py.vm_config.schema import VmConfig
from crosvm_py.vm_config.to_run import all_problems, run_config
from crosvm_py.vm_config.unsupported import ignored
from devices.virtio.balloon.device import BalloonSpec
from devices.virtio.rate_limiter import RateLimits
from devices.virtio.vsock.common import VsockSpec
from tests.crosvm_py.vm_config.values import records
from tests.support.command_line import config_of

KERNEL = {"payload": {"kernel": "/k"}}
SINKS = tuple(SerialSpec("sink", num=num) for num in (2, 3, 4))


def config(**keys: object) -> VmConfig:
    return decode(json.dumps({**KERNEL, **keys}).encode(), VmConfig, keep_fds=True)


def run(**keys: object) -> RunConfig:
    return run_config(config(**keys))


def test_a_kernel_alone_has_the_defaults() -> None:
    made = run()
    assert (made.kernel, made.params, made.initrd) == ("/k", (), None)
    assert (made.cpus, made.memory_bytes, made.huge_pages) == (1, 512 << 20, True)
    assert (made.disks, made.networks, made.balloon, made.vsock) == ((), (), None, None)
    assert made.serial == (
        SerialSpec("sink"),
        SerialSpec("stdout", "virtio-console", stdin=True),
        *SINKS,
    )


def test_devices_get_slots_in_the_order_of_cloud_hypervisor() -> None:
    keys: dict[str, Any] = {
        "disks": [{"path": "/a"}, {"path": "/b"}],
        "net": [{"tap": "t"}],
        "vsock": {"cid": 3, "socket": "/v"},
        "balloon": {"size": 0},
    }
    in_order = ("console", "block:0", "block:1", "net:0", "rng", "vsock", "balloon")
    assert run(**keys).pci_slots == tuple((name, at) for at, name in enumerate(in_order, 1))
    assert run(console={"mode": "Off"}).pci_slots == (("rng", 1),)


def test_slots_that_are_named_are_kept_and_holes_filled_in_each_segment() -> None:
    made = run(
        platform={"num_pci_segments": 3},
        pci_segments=[{"pci_segment": 1, "mmio32_aperture_weight": 4}],
        console={"mode": "Off"},
        disks=[
            {"path": "/a"},
            {"path": "/b", "pci_device_id": 1},
            {"path": "/c", "pci_segment": 2},
            {"path": "/d", "pci_segment": 2, "pci_device_id": 0},
        ],
        rng={"src": "/dev/urandom", "pci_segment": 1},
    )
    assert made.pci_weights == (1, 4, 1)
    assert dict(made.pci_slots) == {
        "block:0": 2,
        "block:1": 1,
        "block:2": 2 * 32 + 1,
        "block:3": 2 * 32,
        "rng": 32,
    }
    told = vm_config(made)
    assert told.platform is not None
    assert told.platform.num_pci_segments == 3
    assert [disk.pci_segment for disk in told.disks or ()] == [0, 0, 2, 2]
    assert [each.pci_segment for each in told.pci_segments or ()] == [1]


@pytest.mark.parametrize(
    ("keys", "text"),
    [
        ({"platform": {"num_pci_segments": 17}}, "17 PCI segments are more than 16"),
        (
            {
                "platform": {"num_pci_segments": 2},
                "pci_segments": [{"mmio32_aperture_weight": 1 << 31}],
            },
            "segment 1 has less than 1/256 of all weights",
        ),
        (
            {
                "disks": [{"path": f"/d{at}"} for at in range(26)],
                "net": [{"tap": f"t{at}"} for at in range(8)],
            },
            r"net\[4\]: no PCI slot is left in its segment",
        ),
    ],
)
def test_segments_and_slots_have_limits(keys: dict[str, object], text: str) -> None:
    with pytest.raises(UnfitConfigError, match=text):
        run(**keys)
    assert all_problems(config(**keys))[0].status == 500


def test_machine_and_payload_reach_their_fields() -> None:
    made = run(
        payload={"kernel": "/k", "cmdline": "a b", "initramfs": "/i"},
        cpus={"boot_vcpus": 3, "max_vcpus": 4, "core_scheduling": "Off"},
        memory={"size": 1 << 30, "thp": False},
    )
    assert (made.params, made.initrd, made.cpus) == (("a b",), "/i", 3)
    assert (made.memory_bytes, made.huge_pages) == (1 << 30, False)
    assert (made.core_scheduling, made.per_vm_core_scheduling) == (False, False)
    assert run().per_vm_core_scheduling


def test_devices_reach_their_fields() -> None:
    limits = {"bandwidth": {"size": 8, "refill_time": 9, "one_time_burst": 3}}
    made = run(
        disks=[
            {
                "path": "/d",
                "readonly": True,
                "direct": True,
                "sparse": False,
                "serial": "s",
                "rate_limiter_config": limits,
            }
        ],
        net=[{"tap": "t", "mac": "52:54:00:12:34:56", "mtu": 1400}],
        balloon={"size": 4096, "deflate_on_oom": True},
        vsock={"cid": 3, "socket": "/s"},
    )
    (disk,), (card,) = made.disks, made.networks
    assert (disk.path, disk.read_only, disk.direct, disk.sparse) == ("/d", True, True, False)
    assert (disk.id, disk.root, disk.option) == ("s", False, "disks[0]")
    assert disk.limits == RateLimits(8, 3, 9)
    assert (card.tap_name, card.mac.hex(), card.mtu, card.pairs) == ("t", "525400123456", 1400, 1)
    assert made.balloon == BalloonSpec(4096, deflate_on_oom=True, page_reporting=False)
    assert made.vsock == VsockSpec(3, "/s")


def test_cards_have_descriptors_or_addresses() -> None:
    made = run(
        cpus={"boot_vcpus": 2, "max_vcpus": 2},
        net=[{"fds": [3, 4], "num_queues": 4}, {"ip": "10.0.0.1", "mask": "255.255.255.0"}],
    )
    assert (made.networks[0].tap_fds, made.networks[0].pairs) == ((3, 4), 2)
    assert made.networks[1].host_ip + made.networks[1].netmask == bytes(
        [10, 0, 0, 1, *[255] * 3, 0]
    )


@pytest.mark.parametrize(
    ("keys", "ports"),
    [
        (
            {"console": {"mode": "Off"}, "serial": {"mode": "Tty"}},
            (SerialSpec("stdout", stdin=True),),
        ),
        (
            {"console": {"mode": "Tty"}, "serial": {"mode": "Tty"}},
            (SerialSpec("stdout"), SerialSpec("stdout", "virtio-console", stdin=True)),
        ),
        (
            {"console": {"mode": "Pty"}, "serial": {"mode": "File", "file": "/l"}},
            (SerialSpec("file", path="/l"), SerialSpec("pty", "virtio-console")),
        ),
        (
            {"console": {"mode": "Off"}, "debug_console": {"mode": "Tty"}},
            (SerialSpec("sink"), SerialSpec("stdout", "debugcon", debugcon_port=0xE9)),
        ),
        (
            {"console": {"mode": "Off"}, "debug_console": {"mode": "Null", "iobase": 0x402}},
            (SerialSpec("sink"), SerialSpec("sink", "debugcon", debugcon_port=0x402)),
        ),
    ],
)
def test_consoles_become_ports(keys: dict[str, object], ports: tuple[SerialSpec, ...]) -> None:
    assert run(**keys).serial == (*ports, *SINKS)


SHARED = {"memory": {"size": 1 << 30, "shared": True}}


@pytest.mark.parametrize(
    ("keys", "place"),
    [
        ({"payload": {"firmware": "/f"}}, "payload.firmware"),
        ({"cpus": {"boot_vcpus": 1, "max_vcpus": 1, "kvm_hyperv": True}}, "cpus.kvm_hyperv"),
        ({"cpus": {"boot_vcpus": 1, "max_vcpus": 1, "features": {"amx": True}}}, "cpus.features"),
        ({"disks": [{"path": "a"}, {"path": "b", "iommu": True}]}, r"disks\[1\].iommu"),
        ({"disks": [{"path": "a", "image_type": "Qcow2"}]}, r"disks\[0\].image_type"),
        (
            {"disks": [{"vhost_user": True, "vhost_socket": "/s"}], **SHARED},
            r"disks\[0\].vhost_user",
        ),
        ({"net": [{"tap": "a", "host_mac": "52:54:00:00:00:01"}]}, r"net\[0\].host_mac"),
        ({"fs": [{"tag": "a", "socket": "/s"}], **SHARED}, "fs"),
        ({"pmem": [{"file": "/p"}]}, "pmem"),
        ({"devices": [{"path": "/sys/x"}]}, "devices"),
        ({"user_devices": [{"socket": "/s"}], **SHARED}, "user_devices"),
        ({"vdpa": [{"path": "/v"}]}, "vdpa"),
        ({"tpm": {"socket": "/t"}}, "tpm"),
        ({"rtc": {}}, "rtc"),
        ({"iommu": True}, "iommu"),
        ({"numa": [{"guest_numa_id": 0, "device_id": "d"}]}, r"numa\[0\].device_id"),
        ({"pci_segments": [{"mmio64_aperture_weight": 2}]}, r"pci_segments\[0\].mmio64"),
        ({"serial": {"mode": "Socket", "socket": "/s"}}, "serial.mode Socket"),
        ({"rng": {"src": "/dev/hwrng"}}, "rng.src"),
    ],
)
def test_what_does_not_exist_says_so(keys: dict[str, object], place: str) -> None:
    with pytest.raises(UnfitConfigError, match=f"^{place}.* is not supported by crosvm-py: "):
        run(**keys)
    assert all_problems(config(**keys))[0].status == 500


@pytest.mark.parametrize(
    ("keys", "text"),
    [
        ({"cpus": {"boot_vcpus": 255, "max_vcpus": 255}}, "cpus.boot_vcpus: 255 vCPUs are more"),
        (
            {"memory": {"size": 4096}},
            "memory.size: 4096 bytes are outside the limits, 4 MiB to 4 T",
        ),
        ({"memory": {"size": (1 << 64) - 1}}, "are outside the limits"),
        ({"memory": {"size": (1 << 30) + 1}}, "1073741825 bytes is not a multiple of 4096"),
        ({"balloon": {"size": 5}}, "balloon.size: 5 bytes is not a multiple"),
        (
            {"disks": [{"path": f"/{index}"} for index in range(27)]},
            "disks: 27 are above the limit",
        ),
        (
            {
                "disks": [
                    {
                        "path": "/a",
                        "rate_limiter_config": {"ops": {"size": 1 << 63, "refill_time": 1}},
                    }
                ]
            },
            r"disks\[0\].rate_limiter_config: ops-size: 9223372036854775808 is not in",
        ),
        (
            {"net": [{"tap": "t", "fds": [7]}]},
            r"net\[0\]: tap and fds exclude each other",
        ),
        ({"net": [{"tap": "a", "fds": [3]}]}, "tap and fds exclude each other"),
        ({"net": [{"tap": "a" * 16}]}, "'a{16}' is not the name of a network interface"),
        ({"net": [{"tap": "a/b"}]}, "'a/b' is not the name"),
        ({"net": [{"tap": "a", "mac": "01:00:00:00:00:01"}]}, "is not the address of one card"),
        ({"net": [{"tap": "a", "mac": "00:00:00:00:00:00"}]}, "is not the address of one card"),
        ({"net": [{"tap": "a", "mtu": 65535}]}, "mtu: 65535 is more than 65521"),
        ({"net": [{"ip": "127.0.0.1", "mask": "255.0.0.0"}]}, "127.0.0.1 is no address that a"),
        ({"net": [{"ip": "10.0.0.1", "mask": "255.0.255.0"}]}, "255.0.255.0 is no netmask"),
        ({"net": [{"ip": "10.0.0.255", "mask": "255.255.255.0"}]}, "network or broadcast address"),
        (
            {
                "cpus": {"boot_vcpus": 20, "max_vcpus": 20},
                "net": [{"tap": "a", "num_queues": 40}],
            },
            "20 pairs are more than 16",
        ),
    ],
)
def test_what_is_too_much_here_says_so(keys: dict[str, object], text: str) -> None:
    with pytest.raises(UnfitConfigError, match=text):
        run(**keys)


def test_hints_are_named_and_ignored() -> None:
    given_keys = config(
        cpus={
            "boot_vcpus": 1,
            "max_vcpus": 300,
            "nested": False,
            "topology": {
                "threads_per_core": 1,
                "cores_per_die": 300,
                "dies_per_package": 1,
                "packages": 1,
            },
        },
        memory={"size": 1 << 30, "hotplug_size": 0, "hotplugged_size": 0},
        net=[{"tap": "t", "host_mac": None}, {"tap": "u", "offload_ufo": False}],
    )
    assert ignored(given_keys) == [
        "net[1].offload_ufo has no effect: a card offloads what its TAP can",
        "cpus.max_vcpus has no effect beyond 254: there are no more vCPUs",
        "cpus.topology has no effect: each vCPU is a core",
    ]
    assert ignored(config()) == []
    made = run_config(given_keys)
    assert (made.cpus, made.max_cpus) == (1, 254)


def test_what_the_command_line_says_can_be_told_in_the_schema() -> None:
    words = [
        *("-c", "2", "-m", "1g", "-p", "quiet", "-p", "ro", "-i", "/i", "--no-rng", "/k"),
        *("-b", "/a,ro,id=x,ops-size=3,ops-refill-time=10", "--net", "tap-name=t,vq-pairs=2"),
        *("--balloon", "4k", "--vsock", "cid=5,socket=/v", "--per-vm-core-scheduling"),
        *("--serial", "type=file,path=/l,hardware=virtio-console"),
        *("--serial", "type=sink,hardware=debugcon,debugcon-port=0xe9"),
    ]
    told = vm_config(config_of(*words))
    assert told.payload is not None
    assert (told.payload.kernel, told.payload.cmdline) == ("/k", "quiet ro")
    assert (told.cpus.boot_vcpus, told.cpus.core_scheduling) == (2, "Vm")
    assert (told.serial.mode, told.console.mode, told.console.file) == ("Tty", "File", "/l")
    assert (told.debug_console.mode, told.debug_console.iobase) == ("Null", 0xE9)
    assert all_problems(told) == []
    assert vm_config(run_config(told)) == told


def test_what_the_schema_cannot_say_is_left_out() -> None:
    told = vm_config(config_of("--net", "user", "--cid", "9", "--serial", "type=syslog", "/k"))
    assert (told.serial.mode, told.console.mode) == ("Null", "Off")
    assert told.vsock is not None
    assert told.vsock.socket == ""
    assert told.net is not None
    assert told.net[0].tap is None


@settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(records(VmConfig))
def test_any_configuration_runs_or_says_why_not(made: VmConfig) -> None:
    found = all_problems(made)
    if not found:
        assert isinstance(run_config(made), RunConfig)
    assert all(re.fullmatch(r"[a-z_0-9\[\]. A-Z]+", problem.place) for problem in found)


def test_no_key_is_forgotten() -> None:
    """Every key of VmConfig is used, refused or ignored."""
    from crosvm_py.vm_config import landlock, pci_slots, to_run, unsupported

    modules = (landlock, pci_slots, to_run, unsupported)
    tables: dict[str, Any] = {**unsupported._REFUSED, **unsupported._IGNORED}
    named = {key.split(".")[0] for key in tables}
    source = "".join(Path(str(module.__file__)).read_text() for module in modules)
    used = {key for key in VmConfig.__struct_fields__ if f"config.{key}" in source}
    assert set(VmConfig.__struct_fields__) - named - used == {"pvpanic"}  # every machine has one


def test_memory_is_as_the_file_says() -> None:
    memory: dict[str, object] = {
        "size": 1 << 30,
        "hugepages": True,
        "hugepage_size": 1 << 30,
        "prefault": True,
    }
    made = run(memory=memory)
    assert (made.pool_page_bytes, made.prefault) == (1 << 30, True)
    memory = {"size": 1 << 30, "hotplug_method": "VirtioMem", "hotplug_size": 1 << 31}
    made = run(memory={**memory, "hotplugged_size": 1 << 30})
    assert made.has_virtio_mem
    assert (made.hotplug_bytes, made.hotplugged_bytes) == (1 << 31, 1 << 30)


@pytest.mark.parametrize(
    ("memory", "place"),
    [
        ({"hotplug_size": 1 << 27, "hotplugged_size": 1 << 27}, "memory.hotplugged_size"),
        ({"hotplug_size": 1 << 27, "hugepages": True}, "memory.hotplug_size"),
        ({"hotplug_size": 1 << 20}, "memory.hotplug_size"),
        ({"hotplug_size": 1 << 43}, "memory.hotplug_size"),
    ],
)
def test_memory_that_cannot_be_so_is_refused(memory: dict[str, object], place: str) -> None:
    with pytest.raises(UnfitConfigError, match=f"^{place}"):
        run(memory={"size": 1 << 30, **memory})
