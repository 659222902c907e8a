# SPDX-License-Identifier: BSD-3-Clause
"""Device processes that are killed, stopped and replaced under load: the guest sees no error."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Final

from tests.e2e.support import CLOUD
from tests.endurance.load import HARASS

if TYPE_CHECKING:
    from tests.e2e.support import Lab, Vm

DISK_MIB: Final = 8

# fio writes blocks with checksums at depth 16, and reads each of them back; a file system on
# another disk is written meanwhile, and checked at the end.
LOAD: Final = """
(until [ -e /tmp/stop ]; do
    fio --name=load --filename=/dev/vdb --rw=randwrite --bs=8k --direct=1 --ioengine=libaio \
    --iodepth=16 --size=2m --loops=2 --verify=crc32c --verify_fatal=1 >/tmp/fio 2>&1 &&
    echo verified || cat /tmp/fio
done) >/tmp/fios 2>&1 &
fio=$!
(while sleep 0.1; do head -c 256 /dev/hwrng || echo rng failed; done) >/tmp/rng 2>&1 &
/sbin/mke2fs -q -t ext4 /dev/vdc && mount /dev/vdc /mnt
n=0
echo "the load runs"
while [ ! -e /sys/block/vdd/queue ] || [ "$(head -c 3 /dev/vdd)" != end ]; do
    head -c 65536 /dev/urandom >/mnt/$n; sha256sum /mnt/$n >>/tmp/sums
    n=$((n + 1))
    blockdev --flushbufs /dev/vdd
    [ $n = 50 ] || continue
    echo 1 >/proc/sys/vm/drop_caches
    sha256sum -c -s /tmp/sums || echo WRONG
    n=0; >/tmp/sums
done
echo 1 >/proc/sys/vm/drop_caches
fact sums sh -c '[ ! -s /tmp/sums ] || sha256sum -c -s /tmp/sums; echo $?'
umount /mnt
fact check /sbin/e2fsck -fn /dev/vdc
echo >/tmp/stop; wait $fio
fact fio_rounds grep -c verified /tmp/fios
fact fio_errors grep -v verified /tmp/fios
fact rng grep -c failed /tmp/rng
fact errors /bin/dmesg -l emerg,alert,crit,err
"""


def harass(lab: Lab, vm: Vm, times: int, *names: str) -> dict[str, dict[str, int]]:
    """Kill and stop devices; return the counters of every device afterwards."""
    words = ["python3", HARASS, vm.socket, "4", str(times), *names]
    result = lab.host.run(words, timeout=600)
    assert result.status == 0, (result.stderr, vm.log)
    counters: dict[str, dict[str, int]] = json.loads(result.stdout)["counters"]
    return counters


def test_killed_and_hung_disks_cost_the_guest_nothing(tester_lab: Lab) -> None:
    lab = tester_lab
    options = ("--rwdisk", lab.disk("load.img", DISK_MIB), "--rwdisk", lab.disk("fs.img", 64))
    flag = small_disk(lab)
    more = ("--block", f"path={flag},ro", "--device-timeout", "3", "-c", "2")
    with lab.start(*options, *more, kernel=CLOUD, script=LOAD) as vm:
        vm.wait_for("the load runs")
        counters = harass(lab, vm, 7, "block:1", "block:2", "rng", "block:0")
        lab.shell("printf end | dd of=flag.img conv=notrunc 2>/dev/null")
        facts = vm.finish()
    assert facts["fio_errors"] == ""
    assert int(facts["fio_rounds"]) > 0
    assert facts["sums"] == "0"
    assert "vdc: clean" not in facts["check"]
    assert re.search(r"/dev/vdc: \d+/", facts["check"]), facts["check"]
    assert facts["rng"] == "0"
    assert facts["errors"] == ""
    assert "WRONG" not in vm.console
    assert sum(device["restarts"] for device in counters.values()) == 7
    assert len(re.findall(r"killed by SIGKILL", vm.log)) == 6
    assert len(re.findall(r"ended by the vmm: ", vm.log)) == 1


def test_device_that_is_never_restarted_ends_the_vm(lab: Lab) -> None:
    options = ("--device-restart", "never")
    with lab.start(*options, script="echo up; sleep 600") as vm:
        vm.wait_for("up")
        lab.shell(f"kill -9 {device_pid(lab, vm, 'block:0')}")
        assert vm.wait() == 33
    assert "killed by SIGKILL" in vm.log


def test_device_beyond_its_restarts_is_lost_and_the_rest_goes_on(lab: Lab) -> None:
    script = """
        (while head -c 16 /dev/hwrng; do :; done) >/dev/null 2>&1 &
        echo up
        until grep -q lost /dev/vdb; do sleep 0.1; blockdev --flushbufs /dev/vdb; done
        fact alive head -c 4 /dev/vdb
    """
    flag = small_disk(lab)
    options = ("--device-restart", "1", "--block", f"path={flag},ro")
    with lab.start(*options, script=script, kernel=CLOUD) as vm:
        vm.wait_for("up")
        harass(lab, vm, 1, "rng")
        lab.shell(f"kill -9 {device_pid(lab, vm, 'rng')}")
        wait = f"until crosvm devices --json {vm.socket} | grep -q dead; do sleep 0.1; done"
        lab.shell(f"{wait}; printf lost | dd of=flag.img conv=notrunc 2>/dev/null")
        assert vm.finish()["alive"] == "lost"
    assert "rng: is lost to the guest: restarted once (--device-restart)" in vm.log


def test_device_gets_a_new_process_on_purpose(lab: Lab) -> None:
    script = "echo up; while ! grep -q end /dev/vdb; do dd if=/dev/vdb of=/dev/null bs=4k count=8 \
        iflag=direct 2>/dev/null; done; fact errors /bin/dmesg -l emerg,alert,crit,err"
    flag = small_disk(lab)
    with lab.start("--block", f"path={flag},ro", script=script) as vm:
        vm.wait_for("up")
        for name in ("block:1", "rng", "block:0"):
            before = device_pid(lab, vm, name)
            result = lab.host.run(["crosvm", "restart-device", name, vm.socket])
            assert (result.status, result.stderr) == (0, "")
            assert device_pid(lab, vm, name) != before
        result = lab.host.run(["crosvm", "restart-device", "net", vm.socket])
        assert result.status == 1
        assert "no device 'net'" in result.stderr
        lab.shell("printf end | dd of=flag.img conv=notrunc 2>/dev/null")
        assert vm.finish()["errors"] == ""
    assert vm.log.count("ended to be restarted") == 3
    assert "ERROR" not in vm.log


def small_disk(lab: Lab) -> str:
    """Make a disk of one block, by which the host tells the guest something."""
    lab.shell("truncate -s 4096 flag.img")
    return f"{lab.folder}/flag.img"


def device_pid(lab: Lab, vm: Vm, name: str) -> int:
    result = lab.host.run(["crosvm", "devices", "--json", vm.socket])
    found = {device["name"]: device["pid"] for device in json.loads(result.stdout)}
    return int(found[name])
