# SPDX-License-Identifier: BSD-3-Clause
from __future__ import annotations

import pytest

from crosvm_py.vm_config import devices, machine
from crosvm_py.vm_config.command_line import Place, parse_command_line
from crosvm_py.vm_config.errors import SchemaError
from crosvm_py.vm_config.field_types import Record
from crosvm_py.vm_config.option_help import describe_options
from crosvm_py.vm_config.options import VALUES, parse_value
from crosvm_py.vm_config.requests import RestoreConfig, RestoredNetConfig, RestoredVfioConfig
from crosvm_py.vm_config.restore_option import parse_receive, parse_restore
from crosvm_py.vm_config.schema import VmConfig

LIMITS = devices.RateLimiterConfig(bandwidth=devices.TokenBucket(size=1 << 20, refill_time=100))


@pytest.mark.parametrize(
    ("option", "text", "made"),
    [
        ("--cpus", "boot=2,max=4", machine.CpusConfig(boot_vcpus=2, max_vcpus=4)),
        ("--cpus", "boot=3", machine.CpusConfig(boot_vcpus=3, max_vcpus=3)),
        ("--cpus", "", machine.CpusConfig(boot_vcpus=1, max_vcpus=1)),
        (
            "--cpus",
            "boot=1,topology=1:2:1:2,affinity=[0@[0-2,5],1@[3]],features=amx,core_scheduling=off",
            machine.CpusConfig(
                boot_vcpus=1,
                max_vcpus=1,
                topology=machine.CpuTopology(
                    threads_per_core=1, cores_per_die=2, dies_per_package=1, packages=2
                ),
                affinity=(
                    machine.CpuAffinity(vcpu=0, host_cpus=(0, 1, 2, 5)),
                    machine.CpuAffinity(vcpu=1, host_cpus=(3,)),
                ),
                features=machine.CpuFeatures(amx=True),
                core_scheduling="Off",
            ),
        ),
        ("--memory", "", machine.MemoryConfig(size=512 << 20)),
        (
            "--memory",
            "size=1G,hotplug_method=virtio-mem,thp=off",
            machine.MemoryConfig(size=1 << 30, hotplug_method="VirtioMem", thp=False),
        ),
        (
            "--disk",
            "path=/a,readonly=on,direct=true,image_type=vhd,lock_granularity=full,id=x",
            devices.DiskConfig(
                path="/a",
                readonly=True,
                direct=True,
                image_type="FixedVhd",
                lock_granularity="Full",
                id="x",
            ),
        ),
        ("--disk", 'path="/a,b[c]" , readonly=off', devices.DiskConfig(path="/a,b[c]")),
        (
            "--disk",
            "socket=/s,vhost_user=on",
            devices.DiskConfig(vhost_socket="/s", vhost_user=True),
        ),
        ("--disk", "bw_size=1M,bw_refill_time=100", devices.DiskConfig(rate_limiter_config=LIMITS)),
        ("--disk", "bw_size=0,bw_refill_time=0", devices.DiskConfig()),
        (
            "--disk",
            "queue_affinity=[0@[1-2]]",
            devices.DiskConfig(
                queue_affinity=(devices.VirtQueueAffinity(queue_index=0, host_cpus=(1, 2)),)
            ),
        ),
        ("--net", "tap=,mac=,ip=,mask=", devices.NetConfig()),
        ("--net", "fd=[3,4],num_queues=4", devices.NetConfig(fds=(3, 4), num_queues=4)),
        ("--net", "fd=3", devices.NetConfig(fds=(3,))),
        ("--console", "off", devices.ConsoleConfig(mode="Off")),
        ("--console", "file=/c,id=c", devices.ConsoleConfig(mode="File", file="/c", id="c")),
        ("--serial", "socket=/s", devices.SerialConfig(mode="Socket", socket="/s")),
        ("--debug-console", "pty,iobase=0xe9", devices.DebugConsoleConfig(mode="Pty", iobase=0xE9)),
        ("--rng", "", devices.RngConfig(src="/dev/urandom")),
        (
            "--generic-vhost-user",
            "socket=/s,queue_sizes=[64,128],device_type=fs",
            devices.GenericVhostUserConfig(socket="/s", queue_sizes=(64, 128), device_type=26),
        ),
        (
            "--numa",
            "guest_numa_id=0,cpus=[0-1],distances=[1@20],memory_zones=[a,b]",
            machine.NumaConfig(
                guest_numa_id=0,
                cpus=(0, 1),
                distances=(machine.NumaDistance(destination=1, distance=20),),
                memory_zones=("a", "b"),
            ),
        ),
        (
            "--platform",
            'iommu_address_width=48,oem_strings=[a,"b,c"]',
            machine.PlatformConfig(iommu_address_width_bits=48, oem_strings=("a", "b,c")),
        ),
        ("--rate-limit-group", "id=g,bw_size=1M,bw_refill_time=100", None),
        ("--landlock-rules", "path=/a,access=rw", machine.LandlockConfig(path="/a", access="rw")),
    ],
)
def test_an_option_is_read(option: str, text: str, made: Record | None) -> None:
    if made is None:
        made = devices.RateLimiterGroupConfig(id="g", rate_limiter_config=LIMITS)
    assert parse_value(option, text) == made


@pytest.mark.parametrize(
    ("option", "text", "reason"),
    [
        ("--disk", "queue_size=70000", "--disk queue_size: '70000' is not a whole number in 0..65"),
        ("--disk", "queue_size=x", "'x' is not a whole number"),
        ("--disk", "queue_size=-1", "'-1' is not a whole number"),
        ("--disk", "queue_size=²", "is not a whole number"),
        ("--disk", "readonly=yes", "--disk readonly: 'yes' is not on, off, true or false"),
        ("--disk", "image_type=iso", "--disk image_type: 'iso' is not one of vhd, qcow2, raw"),
        ("--disk", "size=1", "'size=1' has no key of this option, which are id, iommu"),
        ("--disk", "path", "path needs a value: path="),
        ("--disk", "/a", "'/a' has no key"),
        ("--disk", "path=a,path=b", "--disk path: is given twice"),
        ("--disk", 'path="a', "a quote is not closed"),
        ("--disk", "path=[a", "a bracket is not closed"),
        ("--disk", "path=a]", "a bracket is not closed, or not opened"),
        ("--disk", "bw_size=5", "--disk bw_refill_time: the other bw_ keys need it"),
        ("--disk", "queue_affinity=[0]", "'0' is not queue_index@host_cpus"),
        ("--disk", "path=\0", "is not a text without zero bytes"),
        ("--memory", "size=1T", "--memory size: '1T' is not a whole number .* K, M or G"),
        ("--memory", "size=18446744073709551615K", "is not a whole number"),
        ("--memory", "size=1_000", "is not a whole number"),
        ("--balloon", "deflate_on_oom=on", "--balloon size: is missing"),
        ("--cpus", "boot=1,max=x", "--cpus max: 'x'"),
        ("--cpus", "topology=1:2", "--cpus topology: '1:2' is not threads:cores:dies:packages"),
        ("--cpus", "features=[amx,sgx]", "'sgx' is not a feature; there is amx"),
        ("--cpus", "affinity=[0@[0-18446744073709551615]]", "more than 8192 items"),
        ("--cpus", "affinity=[" + "0@[0-8191]," * 33 + "0@[0]]", "more than 262144 items"),
        ("--disk", "queue_affinity=[" + "0@[0-8191]," * 33 + "]", "more than 262144 items"),
        ("--cpus", "affinity=[0@[5-3]]", "'5-3' is not a range"),
        ("--console", "off,tty", "--console: Off and Tty exclude each other"),
        ("--console", "off=on", "off takes no value"),
        ("--console", "id=x", "--console mode: is missing"),
        ("--numa", "guest_numa_id=0,cpus=[" + "0," * 70000 + "0]", "more than 8192 items"),
        ("--generic-vhost-user", "device_type=watch", "'watch' is not a whole number"),
        ("--vsock", "cid=4294967296,socket=/s", "--vsock cid: '4294967296' is not"),
        ("--fs", "tag=a", "--fs socket: is missing"),
    ],
)
def test_a_wrong_option_is_named_with_its_key(option: str, text: str, reason: str) -> None:
    with pytest.raises(SchemaError, match=reason) as caught:
        parse_value(option, text)
    assert str(caught.value).startswith(option)
    assert "\n" not in str(caught.value)


def test_restore_has_its_descriptors_in_order() -> None:
    text = "source_url=file:///d,vfio_fds=[v@9],net_fds=[a@[5,6],b@7],iommufd_fd=8,resume=on"
    assert parse_restore("--restore", text) == (
        RestoreConfig(
            source_url="file:///d",
            net_fds=(RestoredNetConfig(id="a", num_fds=2), RestoredNetConfig(id="b", num_fds=1)),
            vfio_fds=(RestoredVfioConfig(id="v"),),
            iommufd_fd=8,
            resume=True,
        ),
        (5, 6, 7, 9, 8),
    )


def test_restore_may_have_no_descriptors() -> None:
    request, fds = parse_restore("--restore", "source_url=file:///d,memory_restore_mode=ondemand")
    assert (request.memory_restore_mode, request.net_fds, fds) == ("OnDemand", None, ())


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("source_url=a,net_fds=[5]", "--restore net_fds: '5' is not ID@"),
        ("source_url=a,net_fds=[a@[x]]", "--restore net_fds: 'x' is not a whole number"),
        ("source_url=a,vfio_fds=[a@-1]", "--restore vfio_fds: '-1' is not a descriptor"),
        ("source_url=a,vfio_fds=[a]", "'a' is not ID@FD"),
        ("resume=on", "--restore source_url: is missing"),
    ],
)
def test_restore_refuses(text: str, reason: str) -> None:
    with pytest.raises(SchemaError, match=reason):
        parse_restore("--restore", text)


def test_receive_migration_has_its_descriptors() -> None:
    request, fds = parse_receive("receive-migration", "receiver_url=unix:/s,vfio_fds=[v@4]")
    assert (request.receiver_url, fds) == ("unix:/s", (4,))


def test_a_whole_command_line() -> None:
    line = parse_command_line(
        [
            *("--api-socket", "/s", "--kernel", "/k", "--cmdline", "a=b c", "--disk", "path=/a"),
            *("path=/b", "--event-monitor", "fd=5", "--net=tap=t", "--disk", "path=/c", "-vv"),
            *("--watchdog", "--rtc", "-v", "--memory", "size=0", "--seccomp", "log"),
            *("--memory-zone", "id=z,size=1G"),
        ]
    )
    assert (line.api_socket, line.event_monitor) == (Place("/s"), Place(fd=5))
    assert (line.verbosity, line.seccomp) == (3, "log")
    assert line.config == VmConfig(
        payload=machine.PayloadConfig(kernel="/k", cmdline="a=b c"),
        disks=tuple(devices.DiskConfig(path=path) for path in ("/a", "/b", "/c")),
        net=(devices.NetConfig(tap="t"),),
        memory=machine.MemoryConfig(
            size=0, zones=(machine.MemoryZoneConfig(id="z", size=1 << 30),)
        ),
        rtc=devices.RtcConfig(),
        watchdog=True,
    )


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ("/s", Place("/s")),
        ("path=/s", Place("/s")),
        ('path="/a,b"', Place("/a,b")),
        ("fd=0", Place(fd=0)),
    ],
)
def test_a_place_is_a_path_or_a_descriptor(text: str, place: Place) -> None:
    line = parse_command_line(["--api-socket", text])
    assert (line.api_socket, line.config) == (place, None)


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["--disc", "path=/a"], "unknown option '--disc'"),
        (["/k"], "unknown option '/k'"),
        (["--kernel"], "--kernel: needs a value"),
        (["--kernel", "--disk"], "--kernel: needs a value"),
        (["--kernel", "a", "--kernel", "b"], "--kernel: is given twice"),
        (["--kernel", "a", "b"], "unknown option 'b'"),
        (["--watchdog=on", "--kernel", "a"], "--watchdog: takes no value"),
        (["--disk", "path=/a"], "--disk: needs --kernel or --firmware"),
        (["--cmdline", "a"], "--cmdline: needs --kernel"),
        (["--api-socket", "fd=x"], "--api-socket fd: 'x' is not a descriptor"),
        (["--api-socket", "fd=2147483648"], "is not a descriptor"),
        (["--api-socket", "path=a,fd=3"], "exclude each other"),
        (["--api-socket", "path="], "the path is empty"),
        (["--seccomp", "maybe"], "--seccomp: 'maybe' is none of true, false, log, errno"),
        (["--restore", "x=1"], "--restore: 'x=1' has no key"),
    ],
)
def test_a_wrong_command_line_is_named(words: list[str], reason: str) -> None:
    with pytest.raises(SchemaError, match=reason):
        parse_command_line(words)


def test_options_without_a_vm_are_read() -> None:
    line = parse_command_line(["-V", "-h", "--no-shutdown", "--landlock", "--log-file", "l"])
    assert (line.version_wanted, line.help_wanted, line.no_shutdown) == (True, True, True)
    assert (line.config, line.log_file) == (None, "l")


def test_every_option_is_described() -> None:
    lines = list(describe_options())
    assert "  queue_size=N (128): entries of a queue, a power of two, 4 to 32768" in lines
    assert "  image_type=vhd|qcow2|raw|vhdx|vmdk|unknown (unknown): format of the image" in lines
    assert {line.split()[0] for line in lines if line[0] == "-"} >= VALUES.keys()
