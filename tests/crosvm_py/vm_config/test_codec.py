# SPDX-License-Identifier: BSD-3-Clause
from __future__ import annotations

import json

import msgspec
import pytest

from crosvm_py.vm_config.answers import DeviceNode, PciDeviceInfo, VmInfo
from crosvm_py.vm_config.codec import decode, encode, encode_pretty
from crosvm_py.vm_config.complaint import complaint, core
from crosvm_py.vm_config.devices import (
    BalloonConfig,
    DeviceConfig,
    DiskConfig,
    NetConfig,
    RateLimiterConfig,
    TokenBucket,
    VsockConfig,
)
from crosvm_py.vm_config.errors import SchemaError
from crosvm_py.vm_config.field_types import Record
from crosvm_py.vm_config.machine import CpusConfig, MemoryConfig, PlatformConfig
from crosvm_py.vm_config.requests import RestoreConfig, VmResize, VmSendMigrationData
from crosvm_py.vm_config.schema import VmConfig

# As Kata posts it.
KATA = b"""{"cpus":{"boot_vcpus":1,"max_vcpus":4,"topology":null},
"memory":{"size":2147483648,"shared":true,"hotplug_size":1073741824,"hotplug_method":"Acpi"},
"payload":{"kernel":"/k","cmdline":"root=/dev/vda1"},"disks":[{"path":"/i","readonly":true}],
"rng":{"src":"/dev/urandom"},"balloon":{"size":0},"serial":{"mode":"Null"},
"console":{"mode":"Off"},"vsock":{"cid":3,"socket":"/s"},
"platform":{"num_pci_segments":1,"iommu_address_width":48,"serial_number":"abc"}}"""


def test_an_empty_object_has_the_defaults() -> None:
    config = decode(b"{}", VmConfig)
    assert config == VmConfig()
    assert (config.cpus.boot_vcpus, config.memory.size) == (1, 512 << 20)
    assert (config.serial.mode, config.console.mode, config.debug_console.mode) == (
        *("Null", "Tty", "Off"),
    )
    assert (config.rng.src, config.payload) == ("/dev/urandom", None)


def test_what_kata_posts_is_understood() -> None:
    config = decode(KATA, VmConfig)
    assert config.balloon == BalloonConfig(size=0)
    assert config.vsock == VsockConfig(cid=3, socket="/s")
    assert config.disks == (DiskConfig(path="/i", readonly=True),)
    assert config.platform == PlatformConfig(system_serial_number="abc")
    assert decode(encode(config), VmConfig) == config


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (b"null", "^null is not an object"),
        (b"[]", "^an array is not an object"),
        (b'{"disks":{}}', "^disks: an object is not an array"),
        (b'{"disks":[5]}', r"^disks\[0\]: 5 is not an object"),
        (b'{"disks":[{},{"queue_size":70000}]}', r"^disks\[1\].queue_size: 70000 is not a whole"),
        (b'{"disks":[{"queue_size":2.0}]}', r"2.0 is not a whole number in 0..65535"),
        (b'{"disks":[{"queue_size":true}]}', "true is not a whole number in 0..65535"),
        (b'{"disks":[{"queue_size":"128"}]}', "'128' is not a whole number"),
        (b'{"disks":[{"queue_size":null}]}', "null is not a whole number"),
        (b'{"disks":[{"readonly":1}]}', r"readonly: 1 is not true or false"),
        (b'{"disks":[{"path":7}]}', r"path: 7 is not a string"),
        (b'{"disks":[{"pci_device_id":256}]}', "256 is not a whole number in 0..255"),
        (b'{"memory":{}}', "^memory.size: is missing"),
        (b'{"memory":{"size":-1}}', "^memory.size: -1 is not a whole number"),
        (b'{"memory":{"size":18446744073709551616}}', "^memory.size: 1.8.*e.19 is not a whole"),
        (b'{"memory":{"size":1,"hotplug_method":"acpi"}}', "'acpi' is not one of Acpi, VirtioMem"),
        (b'{"memory":{"size":1,"hotplug_method":[]}}', "an array is not one of Acpi"),
        (b'{"cpus":{"boot_vcpus":1}}', "^cpus.max_vcpus: is missing"),
        (b'{"cpus":{"boot_vcpus":1,"max_vcpus":1,"features":null}}', "^cpus.features: null is not"),
        (b'{"numa":[{"guest_numa_id":1,"memory_zones":["a",3]}]}', r"memory_zones\[1\]: 3 is not"),
        (b'{"net":[{"fds":[2147483648]}]}', r"fds\[0\]: 2147483648 is not a whole number in -2147"),
        (
            b'{"disks":[{"rate_limiter_config":{"bw":{}}}]}',
            r"^disks\[0\].rate_limiter_config.bw: there is no such key",
        ),
        (
            b'{"rate_limit_groups":[{"id":"a","rate_limiter_config":null}]}',
            r"rate_limiter_config: null is not an object",
        ),
        (b'{"platform":{"uuid":"a","system_uuid":"b"}}', "^platform.uuid: is the older name"),
        (b'{"disks":[{"x":{"y":1,"y":2}}]}', r"^disks\[0\].x.y: the key is there twice"),
    ],
)
def test_what_does_not_fit_is_named(text: bytes, reason: str) -> None:
    with pytest.raises(SchemaError, match=reason):
        decode(text, VmConfig)


@pytest.mark.parametrize(
    "key",
    [
        *("cpus", "memory", "rng", "serial", "console", "debug_console", "pvpanic", "iommu"),
        *("watchdog", "landlock_enable"),
    ],
)
def test_these_keys_cannot_be_null(key: str) -> None:
    with pytest.raises(SchemaError, match=f"^{key}: null is not "):
        decode(json.dumps({key: None}).encode(), VmConfig)


def test_all_other_keys_can_be_null() -> None:
    nullable = [each.name for each in msgspec.structs.fields(VmConfig) if core(each.type)[2]]
    text = json.dumps(dict.fromkeys(nullable)).encode()
    assert decode(text, VmConfig) == VmConfig()
    assert len(nullable) == len(VmConfig.__struct_fields__) - 10


def test_unknown_keys_are_ignored() -> None:
    text = b'{"gdb":{"x":[1.5,null]},"memory":{"size":1,"new":2.0},"disks":[{"y":"z"}]}'
    config = decode(text, VmConfig)
    assert config == VmConfig(memory=MemoryConfig(size=1), disks=(DiskConfig(),))


def test_absent_values_are_left_out() -> None:
    written = json.loads(encode(DiskConfig(path="/é", iommu=False)))
    assert written["pci_segment"] == 0
    assert written.keys().isdisjoint({"id", "iommu", "serial", "rate_limiter_config"})
    assert json.loads(encode(DiskConfig(iommu=True)))["iommu"] is True
    assert json.loads(encode(VmConfig()))["iommu"] is False


def test_what_is_written_is_ascii() -> None:
    assert encode(PciDeviceInfo(id="é\udcff", bdf="0000:00:06.0")).isascii()
    assert encode_pretty(PciDeviceInfo(id="é", bdf="")) == '{\n  "id": "\\u00e9",\n  "bdf": ""\n}'


def test_the_largest_number_is_kept() -> None:
    most = (1 << 64) - 1
    assert decode(encode(VmResize(desired_ram=most)), VmResize) == VmResize(desired_ram=most)


def test_limits_are_kept() -> None:
    limits = RateLimiterConfig(ops=TokenBucket(size=3, refill_time=100))
    assert encode(limits) == b'{"ops":{"size":3,"refill_time":100}}'


@pytest.mark.parametrize(
    ("text", "kind", "made"),
    [
        (b'{"fds":[3,4]}', NetConfig, NetConfig(fds=(-1, -1))),
        (b'{"fds":null}', NetConfig, NetConfig()),
        (b'{"fd":7}', DeviceConfig, DeviceConfig(fd=-1)),
        (b'{"net":[{"fds":[9]}]}', VmConfig, VmConfig(net=(NetConfig(fds=(-1,)),))),
        (b'{"devices":[{"fd":9}]}', VmConfig, VmConfig(devices=(DeviceConfig(fd=-1),))),
        (
            b'{"platform":{"iommufd_fd":0}}',
            VmConfig,
            VmConfig(platform=PlatformConfig(iommufd_fd=-1)),
        ),
        (
            b'{"source_url":"u","iommufd_fd":5}',
            RestoreConfig,
            RestoreConfig(source_url="u", iommufd_fd=-1),
        ),
    ],
)
def test_a_clients_descriptors_are_forgotten(text: bytes, kind: type[Record], made: Record) -> None:
    assert decode(text, kind) == made


def test_our_own_descriptors_are_kept() -> None:
    assert decode(b'{"fds":[3]}', NetConfig, keep_fds=True).fds == (3,)


def test_requests_have_their_defaults() -> None:
    sent = decode(b'{"destination_url":"unix:/s"}', VmSendMigrationData)
    assert (sent.downtime_ms, sent.timeout_s, sent.connections) == (300, 3600, 1)
    restored = decode(b'{"source_url":"file:///d"}', RestoreConfig)
    assert (restored.zone_updates, restored.memory_restore_mode) == ((), "Copy")


def test_info_has_its_device_tree() -> None:
    node = DeviceNode(id="_disk0", resources=({"LegacyIrq": 5},), parent="_virtio-pci-_disk0")
    info = VmInfo(
        config=VmConfig(),
        state="Running",
        memory_actual_size=512 << 20,
        device_tree={"_disk0": node},
    )
    written = json.loads(encode(info))["device_tree"]["_disk0"]
    assert written == {
        "id": "_disk0",
        "resources": [{"LegacyIrq": 5}],
        "parent": "_virtio-pci-_disk0",
        "children": [],
    }


def test_a_message_that_we_do_not_know_is_still_an_error_of_ours() -> None:
    assert str(complaint("Something new - at `$.cpus`", {"cpus": 1}, VmConfig)) == (
        "cpus: 1 is not an object"
    )


def test_cpus_need_both_numbers() -> None:
    assert decode(b'{"boot_vcpus":1,"max_vcpus":2}', CpusConfig).max_vcpus == 2
