# SPDX-License-Identifier: BSD-3-Clause
"""Devices under control: told, limited, resized and held still, with a stock driver at work."""

from __future__ import annotations

import json
import time
from typing import TYPE_CHECKING, Final, NamedTuple

import pytest

from tests.e2e.support import GUEST_SECONDS

if TYPE_CHECKING:
    from tests.e2e.support import Lab, Vm

MIB: Final = 1 << 20
SECTOR: Final = 512
MEASURED_SECONDS: Final = 10
TOLERANCE: Final = 0.10


class Reading(NamedTuple):
    """The counters of every device at one moment of the host."""

    seconds: float
    devices: dict[str, dict[str, object]]

    def counter(self, device: str, name: str) -> int:
        counters = self.devices[device]["counters"]
        assert isinstance(counters, dict)
        return int(counters[name])


def control(lab: Lab, *words: str) -> tuple[int, str]:
    """Run ``crosvm WORDS``; return its status and what it printed on either output."""
    result = lab.host.run(["crosvm", *words], timeout=GUEST_SECONDS)
    return result.status, result.stdout + result.stderr


def read_devices(lab: Lab, vm: Vm) -> Reading:
    text = lab.host.shell(f"date +%s.%N; crosvm devices --json {vm.socket}")
    stamp, _, listing = text.partition("\n")
    return Reading(float(stamp), {str(device["name"]): device for device in json.loads(listing)})


def rates(lab: Lab, vm: Vm, device: str) -> tuple[float, float]:
    """Return requests and bytes of data per second over the time of measurement."""
    before = read_devices(lab, vm)
    lab.host.shell(f"sleep {MEASURED_SECONDS}")
    after = read_devices(lab, vm)
    seconds = after.seconds - before.seconds

    def rate(counter: str) -> float:
        return (after.counter(device, counter) - before.counter(device, counter)) / seconds

    return rate("requests"), rate("bytes_to_guest")


# Devices


READ_SOME: Final = """
fact ready echo yes
read -r line
dd if=/dev/vdb of=/dev/null bs=4k count=100 iflag=direct 2>/dev/null
fact done echo yes
read -r line
"""


def test_devices_are_told_with_their_processes_and_counters(tester_lab: Lab) -> None:
    disk = tester_lab.disk("disk.img", 4)
    options = ("-c", "2", "--rwdisk", disk, "--serial", "type=stdout,num=1,console,stdin")
    with tester_lab.start(*options, script=READ_SOME) as vm:
        vm.wait_for("@ready=yes")
        before = read_devices(tester_lab, vm)
        vm.command.send("go\n")
        vm.wait_for("@done=yes")
        after = read_devices(tester_lab, vm)
        table = control(tester_lab, "devices", vm.socket)
        pids = {process["pid"] for process in vm.processes()}
        vm.command.send("end\n")
        vm.finish()

    names = ["block:0", "block:1", "rng"]
    assert list(after.devices) == names
    assert [device["index"] for device in after.devices.values()] == [0, 1, 2]
    assert {device["pid"] for device in after.devices.values()} < pids
    assert [device["state"] for device in after.devices.values()] == ["active"] * 3
    assert [device["policy"] for device in after.devices.values()] == [
        "block_device",
        "block_device",
        "rng_device",
    ]
    queues = after.devices["block:1"]["queues"]
    assert isinstance(queues, list)
    assert {queue.pop("engine") for queue in queues} <= {"native", "python"}
    assert queues == [{"size": 256, "enabled": True, "limit_wait_ms": None}] * 2
    for counter, least in (
        ("requests", 100),
        ("kicks", 1),
        ("interrupts", 1),
        ("bytes_to_guest", 100 * 4096),
        ("bytes_from_guest", 100 * 16),
    ):
        grown = after.counter("block:1", counter) - before.counter("block:1", counter)
        assert grown >= least, counter
    assert after.counter("block:1", "errors") == 0
    assert after.counter("block:1", "restarts") == 0
    status, text = table
    assert status == 0
    assert [line.split()[1] for line in text.splitlines()] == ["NAME", *names]


# Resize

SEE_SIZES: Final = f"""
size() {{ cat /sys/block/vdb/size; }}
until_size() {{ until [ $(size) = $1 ]; do sleep 0.1; done; }}
fact first size
fact ready echo yes
until_size {8 * MIB // SECTOR}
fact grown size
fact wrote sh -c 'echo at the end | dd of=/dev/vdb bs=512 seek={8 * MIB // SECTOR - 1} \
conv=sync,notrunc,fsync 2>/dev/null && echo yes'
until_size {2 * MIB // SECTOR}
fact shrunk size
fact behind sh -c 'dd if=/dev/vdb bs=512 skip={2 * MIB // SECTOR} count=1 2>/dev/null | wc -c'
fact errors /bin/dmesg -l emerg,alert,crit,err
"""


def test_resized_disk_is_seen_by_the_guest(any_lab: Lab) -> None:
    disk = any_lab.disk("disk.img", 4)
    with any_lab.start("--rwdisk", disk, script=SEE_SIZES) as vm:
        vm.wait_for("@ready=yes")
        read_only = control(any_lab, "disk", "resize", "0", "1g", vm.socket)
        missing = control(any_lab, "disk", "resize", "7", "1g", vm.socket)
        odd = control(any_lab, "disk", "resize", "1", "4097", vm.socket)
        assert control(any_lab, "disk", "resize", "1", "8m", vm.socket) == (0, "")
        vm.wait_for("@wrote=yes")
        grown_bytes = int(any_lab.shell("stat -c %s disk.img"))
        tail = any_lab.shell("tail -c 512 disk.img | tr -d '\\0'")
        assert control(any_lab, "disk", "resize", "1", "2m", vm.socket) == (0, "")
        facts = vm.finish()

    assert facts["first"] == str(4 * MIB // SECTOR)
    assert facts["grown"] == str(8 * MIB // SECTOR)
    assert facts["shrunk"] == str(2 * MIB // SECTOR)
    assert facts["behind"] == "0"
    assert facts["errors"] == ""
    assert (grown_bytes, tail.strip()) == (8 * MIB, "at the end")
    assert int(any_lab.shell("stat -c %s disk.img")) == 2 * MIB
    assert "block:1: cut from 8388608 to 2097152 bytes" in vm.log
    for (status, text), reason in (
        (read_only, "a read-only disk keeps its size"),
        (missing, "no device 'block:7'"),
        (odd, "4097 bytes is not a multiple of the sector 512"),
    ):
        assert status == 1
        assert reason in text


# Limits. What fio gets of a disk, by the clock of the guest; a bucket lasts half a second, since
# the host may stop for tenths of one.

MEASURE_TWICE: Final = """
measure() {
    fio --name=load --filename=/dev/vdb --rw=randread --bs=$SIZE --direct=1 --ioengine=libaio \
        --iodepth=4 --ramp_time=3 --runtime=$SECONDS_EACH --time_based --minimal | cut -d ';' -f 7,8
}
fact first measure
fact waiting echo yes
read -r line
fact second measure
"""


class Rates(NamedTuple):
    """What fio says of its reads."""

    kib_per_second: float
    per_second: float


def limited_rates(lab: Lab, block: str, at_start: str, change: str) -> tuple[Rates, Rates]:
    """Return what a guest gets that reads all the time, before and after a change of limits."""
    disk = lab.disk("disk.img", 64)
    options = (
        *("--block", f"path={disk},{at_start}"),
        *("--serial", "type=stdout,num=1,console,stdin"),
    )
    script = f"SIZE={block} SECONDS_EACH={MEASURED_SECONDS}\n{MEASURE_TWICE}"
    with lab.start(*options, script=script) as vm:
        vm.wait_for("@waiting=yes")
        status, text = control(lab, "limit", "block:1", change, vm.socket)
        assert status == 0, text
        vm.command.send("go on\n")
        facts = vm.finish()
    first, second = (Rates(*map(float, facts[name].split(";"))) for name in ("first", "second"))
    return first, second


def test_bytes_of_a_disk_are_limited_and_the_limit_can_change(tester_lab: Lab) -> None:
    first, second = limited_rates(
        tester_lab, "64k", "bw-size=1m,bw-refill-time=500", "bw-size=256k"
    )
    assert first.kib_per_second == pytest.approx(2 * 1024, rel=TOLERANCE)
    assert second.kib_per_second == pytest.approx(2 * 256, rel=TOLERANCE)


def test_operations_of_a_disk_are_limited_and_the_limit_can_be_lifted(tester_lab: Lab) -> None:
    first, second = limited_rates(tester_lab, "4k", "ops-size=20,ops-refill-time=500", "ops-size=0")
    assert first.per_second == pytest.approx(40, rel=TOLERANCE)
    assert second.per_second > 2 * first.per_second


def test_requests_larger_than_the_bucket_keep_the_rate(tester_lab: Lab) -> None:
    first, second = limited_rates(
        tester_lab, "128k", "bw-size=32k,bw-refill-time=50", "bw-size=64k"
    )
    assert first.kib_per_second == pytest.approx(20 * 32, rel=TOLERANCE)
    assert second.kib_per_second == pytest.approx(20 * 64, rel=TOLERANCE)


def test_entropy_is_limited(tester_lab: Lab) -> None:
    script = "cat /dev/hwrng >/dev/null &\nfact ready echo yes\nread -r line"
    options = (
        *("--rng", "bw-size=1k,bw-refill-time=100"),
        *("--serial", "type=stdout,num=1,console,stdin"),
    )
    with tester_lab.start(*options, script=script) as vm:
        vm.wait_for("@ready=yes")
        tester_lab.host.shell("sleep 1")
        _, bytes_per_second = rates(tester_lab, vm, "rng")
        status, text = control(tester_lab, "limit", "rng", vm.socket)
        wrong = control(tester_lab, "limit", "rng", "bw-one-time-burst=1,bw-size=0", vm.socket)
        control(tester_lab, "stop", vm.socket)
    assert bytes_per_second == pytest.approx(10 * 1024, rel=TOLERANCE)
    assert status == 0
    assert text.startswith("bw-size=1024,bw-one-time-burst=0,bw-refill-time=100,ops-size=0,")
    assert wrong[0] == 1
    assert "bw-one-time-burst: without bw-size nothing is limited" in wrong[1]


# Pause

SUSPENDED_SECONDS: Final = 4
SUSPENSIONS: Final = 3

WRITE_AND_VERIFY: Final = """
uptime() { read -r up idle </proc/uptime; echo $up; }
fact started uptime
fact ready echo yes
fio --name=load --filename=/dev/vdb --rw=randwrite --bs=8k --direct=1 --ioengine=libaio \
--iodepth=16 --size=2m --loops=1000 --verify=crc32c --verify_fatal=1 >/tmp/fio 2>&1 &
fio=$!
read -r line
fact ended uptime
kill -0 $fio && fact running echo yes
kill -INT $fio
wait $fio
fact verified grep -c 'err= 0' /tmp/fio
fact complaints grep -i -e verify: -e bad /tmp/fio
fact errors /bin/dmesg -l emerg,alert,crit,err
fact stalls sh -c '/bin/dmesg | grep -i -e stalls -e lockup -e watchdog: -e hung'
"""


def wait_for_requests(lab: Lab, vm: Vm, *, more_than: int) -> None:
    deadline = time.monotonic() + GUEST_SECONDS
    while read_devices(lab, vm).counter("block:1", "requests") <= more_than:
        assert time.monotonic() < deadline, "the disk is used no more"


def test_no_request_is_in_flight_while_suspended_under_load(lab: Lab) -> None:
    disk = lab.disk("disk.img", 8)
    options = (
        *("-c", "2", "--rwdisk", disk),
        *("--serial", "type=stdout,num=1,console,stdin"),
    )
    with lab.start(*options, script=WRITE_AND_VERIFY) as vm:
        vm.wait_for("@ready=yes")
        lab.host.shell("sleep 3")
        begin = float(lab.host.shell("date +%s.%N"))
        for _ in range(SUSPENSIONS):
            lab.host.shell("sleep 1")
            assert vm.control("suspend").status == 0
            checksum = lab.shell("sha256sum disk.img")
            still = read_devices(lab, vm)
            lab.host.shell(f"sleep {SUSPENDED_SECONDS}")
            later = read_devices(lab, vm)
            assert still.devices == later.devices
            assert lab.shell("sha256sum disk.img") == checksum
            assert {device["state"] for device in later.devices.values()} == {"paused"}
            assert vm.control("resume").status == 0
            wait_for_requests(lab, vm, more_than=later.counter("block:1", "requests"))
        vm.command.send("end\n")
        end = float(lab.host.shell("date +%s.%N"))
        facts = vm.finish()

    assert facts["running"] == "yes"
    assert facts["verified"] == "1"
    assert facts["complaints"] == ""
    assert facts["errors"] == ""
    assert facts["stalls"] == ""
    # The guest's time stood still with it.
    guest_seconds = float(facts["ended"]) - float(facts["started"])
    assert guest_seconds < end - begin + 5 - SUSPENSIONS * SUSPENDED_SECONDS
