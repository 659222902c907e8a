# SPDX-License-Identifier: BSD-3-Clause
"""Memory that a VM with a stock kernel gets while it runs, used by its programs and its disks."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from tests.e2e.support import CLOUD_BZIMAGE, GUEST_SECONDS

if TYPE_CHECKING:
    from tests.e2e.support import Lab, Vm

MIB: Final = 1 << 20
FILE_MIB: Final = 16

# The guest brings each block of new memory into use, and reads a disk into a file in memory. Linux
# takes pages above 4 GiB first, where the new ones are.
GROW: Final = """
total() { sed -n 's/^MemTotal: *\\([0-9]*\\) kB/\\1/p' /proc/meminfo; }
online() {
    for block in /sys/devices/system/memory/memory*; do
        [ "$(cat $block/state)" = online ] || echo online >$block/state
    done
}
wait_total() { until online 2>/dev/null; [ "$(total)" -gt $1 ]; do sleep 0.1; done; }
fact before total
echo waits-1
wait_total $(($(total) + 250000))
fact after total
mount -t tmpfs -o size=90% none /mnt
cp /dev/vdb /mnt/copy
fact sum sha256sum /mnt/copy
echo waits-2
wait_total $(($(total) + 100000))
fact modules sh -c 'ls -d /sys/devices/LNXSYSTM:00/*/PNP0C80:* | wc -l'
fact errors sh -c '/bin/dmesg -l emerg,alert,crit,err | grep -v rcu'
"""


def control(vm: Vm, lab: Lab, *words: str) -> str:
    result = lab.host.run(["crosvm", *words, vm.socket], timeout=GUEST_SECONDS)
    return result.stderr.strip() if result.status else result.stdout.strip()


def test_guest_grows_by_modules_and_reads_a_disk_into_them(tester_lab: Lab) -> None:
    image = f"{tester_lab.folder}/data.img"
    data_sum = tester_lab.shell(
        f"head -c {FILE_MIB}M /dev/urandom >data.img; sha256sum <data.img"
    ).split()[0]
    words = ("-m", "192,max=576", "--block", f"{image},ro")
    with tester_lab.start(*words, kernel=CLOUD_BZIMAGE, script=GROW) as vm:
        vm.wait_for("waits-1")
        assert "multiples of 128 MiB" in control(vm, tester_lab, "resize", "--memory", "200m")
        assert "at most 576 MiB" in control(vm, tester_lab, "resize", "--memory", "704m")
        assert control(vm, tester_lab, "resize", "--memory", "448m") == ""
        vm.wait_for("waits-2")
        assert control(vm, tester_lab, "resize", "--memory", "448m") == ""  # nothing to do
        assert control(vm, tester_lab, "resize", "--memory", "576m") == ""
        facts = vm.finish()

    assert int(facts["after"]) - int(facts["before"]) == 256 * 1024
    assert facts["sum"].split()[0] == data_sum
    assert facts["errors"] == ""


# Linux brings into use what virtio-mem plugs, as memory that it can free again. Meanwhile programs
# read a disk, and the device's process is killed.
PLUG: Final = """
total() { sed -n 's/^MemTotal: *\\([0-9]*\\) kB/\\1/p' /proc/meminfo; }
above() { until [ "$(total)" -gt $1 ]; do sleep 0.1; done; }
below() { until [ "$(total)" -lt $1 ]; do sleep 0.1; done; }
echo online_movable >/sys/devices/system/memory/auto_online_blocks
start=$(total)
while :; do cat /dev/vdb >/dev/null; done &
echo waits-1
above $((start + 120000))
echo waits-2
above $((start + 250000))
fact grown total
mount -t tmpfs none /mnt
cp /dev/vdb /mnt/copy
fact sum sha256sum /mnt/copy
rm /mnt/copy
echo waits-3
below $((start + 100000))
echo waits-4
below $((start + 10000))
fact shrunk total
fact errors sh -c '/bin/dmesg -l emerg,alert,crit,err | grep -v rcu'
kill $!
"""


def test_guest_plugs_and_unplugs_blocks_while_the_device_is_killed(tester_lab: Lab) -> None:
    lab = tester_lab
    image = f"{lab.folder}/data.img"
    data_sum = lab.shell(f"head -c {FILE_MIB}M /dev/urandom >data.img; sha256sum <data.img").split()
    words = ("-m", "192,max=448,hotplug-method=virtio-mem", "--block", f"{image},ro")

    def kill() -> None:
        (pid,) = (each["pid"] for each in vm.processes() if each["name"] == "virtio-mem")
        lab.host.shell(f"kill -9 {pid}")

    with lab.start(*words, kernel=CLOUD_BZIMAGE, script=PLUG) as vm:
        vm.wait_for("waits-1")
        assert control(vm, lab, "resize", "--memory", "448m") == ""
        vm.wait_for("waits-2")
        kill()
        vm.wait_for("waits-3")
        assert control(vm, lab, "resize", "--memory", "192m") == ""
        kill()
        vm.wait_for("waits-4")
        facts = vm.finish()

    assert facts["sum"].split()[0] == data_sum[0]
    assert int(facts["grown"]) - int(facts["shrunk"]) > 200 * 1024
    assert facts["errors"] == ""
