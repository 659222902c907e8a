# SPDX-License-Identifier: BSD-3-Clause
"""Disks as a real driver uses them, checked in the guest and then on the host."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from tests.e2e.support import ROOT_EXT4

if TYPE_CHECKING:
    from tests.e2e.support import Lab

COPIED_MIB: Final = 64
HOLES_MIB: Final = 16
FS_MIB: Final = 32
HOST_BLOCK_BYTES: Final = 512  # the unit of st_blocks
MIB: Final = 1 << 20

# vdb is full of noise and read-only, vdc empty, vdd full of noise, vde has 4096-byte blocks.
USE_DISKS: Final = f"""
set -e
fact sizes cat /sys/block/vdb/size /sys/block/vdc/size /sys/block/vdd/size /sys/block/vde/size
fact serials awk 1 /sys/block/vdb/serial /sys/block/vdd/serial /sys/block/vde/serial
fact read_only cat /sys/block/vdb/ro /sys/block/vdc/ro
fact block_size cat /sys/block/vde/queue/logical_block_size

fact read_sum sha256sum /dev/vdb
dd if=/dev/vdb of=/dev/vdc bs=1M count={COPIED_MIB} conv=fsync 2>/dev/null
fact refusal sh -c 'echo no | dd of=/dev/vdb bs=512 conv=fsync'

fact queues ls /sys/block/vdb/mq
taskset 1 dd if=/dev/vdb of=/dev/null bs=1M count=1 iflag=direct 2>/dev/null
taskset 2 dd if=/dev/vdb of=/dev/null bs=1M count=1 iflag=direct 2>/dev/null
fact interrupts awk '/virtio1-req/ {{ print $NF, ($2 + $3 > 0) }}' /proc/interrupts

/sbin/blkdiscard -o {1 * MIB} -l {8 * MIB} /dev/vdd
/sbin/blkdiscard -z -o {12 * MIB} -l {2 * MIB} /dev/vdd

/sbin/mke2fs -q -t ext4 /dev/vde
mount /dev/vde /mnt
cp /bin/busybox /mnt/first
for i in $(seq 100); do echo $i >/mnt/small.$i; done
umount /mnt
fact check /sbin/e2fsck -fn /dev/vde
fact errors /bin/dmesg -l emerg,alert,crit,err
"""


def test_disks_read_write_discard_and_refuse(any_lab: Lab) -> None:
    noise, copy = f"{any_lab.folder}/noise.img", any_lab.disk("copy.img", COPIED_MIB)
    holes, fs = f"{any_lab.folder}/holes.img", any_lab.disk("fs.img", FS_MIB)
    noise_sum = any_lab.shell(f"""
        head -c {COPIED_MIB}M /dev/urandom >noise.img
        head -c {HOLES_MIB}M noise.img >holes.img
        sha256sum <noise.img
    """).split()[0]
    options = (
        *("--block", f"path={noise},ro,id=noise", "--rwdisk", copy),
        *("--block", f"{holes},id=exactly-twenty-bytes", "--block", f"{fs},block-size=4096,id=fs"),
    )
    with any_lab.start("-c", "2", *options, script=USE_DISKS) as vm:
        facts = vm.finish()

    sizes = [mib * MIB // 512 for mib in (COPIED_MIB, COPIED_MIB, HOLES_MIB, FS_MIB)]
    assert facts["sizes"] == " ".join(map(str, sizes))
    assert facts["serials"] == "noise exactly-twenty-bytes fs"
    assert (facts["read_only"], facts["block_size"]) == ("1 0", "4096")
    assert facts["read_sum"].split()[0] == noise_sum
    assert "not permitted" in facts["refusal"]
    assert facts["queues"] == "0 1"
    assert facts["interrupts"] == "virtio1-req.0 1 virtio1-req.1 1"
    assert "small.100" not in facts["check"], facts["check"]
    assert "/dev/vde: 112/" in facts["check"], facts["check"]
    assert facts["errors"] == ""

    any_lab.shell(f"""
        cmp noise.img copy.img
        echo "{noise_sum}  noise.img" | sha256sum --status -c -
        cmp -n {MIB} noise.img holes.img
        cmp -n {8 * MIB} -i {MIB}:0 holes.img /dev/zero
        cmp -n {3 * MIB} -i {9 * MIB} noise.img holes.img
        cmp -n {2 * MIB} -i {12 * MIB}:0 holes.img /dev/zero
        cmp -n {2 * MIB} -i {14 * MIB} noise.img holes.img
        /sbin/e2fsck -fn fs.img
    """)
    blocks = int(any_lab.shell("stat -c %b holes.img"))
    assert blocks * HOST_BLOCK_BYTES == (HOLES_MIB - 8) * MIB


USE_DIRECT: Final = f"""
set -e
dd if=/dev/vdb of=/dev/vdc bs=1M oflag=direct 2>/dev/null
dd if=/dev/vdb of=/dev/vdc bs=512 skip=101 seek=3 count=9 conv=notrunc 2>/dev/null
sync
/sbin/blkdiscard -o {1 * MIB} -l {2 * MIB} /dev/vdc
/sbin/blkdiscard -z -o {4 * MIB} -l {1 * MIB} /dev/vdc
echo 3 >/proc/sys/vm/drop_caches
fact sum sha256sum /dev/vdc
fact errors /bin/dmesg -l emerg,alert,crit,err
"""


def test_direct_disk_on_a_real_file_system(tester_lab: Lab) -> None:
    size_mib = 8
    source, target = f"{tester_lab.scratch}/source.img", f"{tester_lab.scratch}/target.img"
    tester_lab.shell(f"""
        head -c {size_mib}M /dev/urandom >{source}
        head -c {size_mib}M /dev/zero >{target}
    """)
    options = ("--block", f"{source},ro,direct", "--block", f"{target},direct=true")
    with tester_lab.start(*options, script=USE_DIRECT) as vm:
        facts = vm.finish()
    assert facts["errors"] == ""
    tester_lab.shell(f"""
        cp {source} expected
        dd if={source} of=expected bs=512 skip=101 seek=3 count=9 conv=notrunc status=none
        dd if=/dev/zero of=expected bs=1M seek=1 count=2 conv=notrunc status=none
        dd if=/dev/zero of=expected bs=1M seek=4 count=1 conv=notrunc status=none
        cmp expected {target}
        echo "{facts["sum"].split()[0]}  expected" | sha256sum --status -c -
    """)
    blocks = int(tester_lab.shell(f"stat -c %b {target}"))
    assert blocks * HOST_BLOCK_BYTES <= (size_mib - 2) * MIB + 64 * 1024


def test_written_root_is_whole_on_the_host(lab: Lab) -> None:
    image = f"{lab.scratch}/root.ext4"
    lab.shell(f"cp --sparse=always {ROOT_EXT4} {image}")
    script = """
    fact root awk '$2 == "/" { print $3, substr($4, 1, 2) }' /proc/mounts
    echo "written by a guest" >/var/made
    mount -o remount,ro /
    """
    with lab.start("--rwroot", image, root=None, script=script) as vm:
        facts = vm.finish()
    assert facts["root"] == "ext4 rw"
    lab.shell(f"/sbin/e2fsck -fn {image}")
    assert lab.shell(f"/sbin/debugfs -R 'cat /var/made' {image}") == "written by a guest\n"


def test_writable_image_belongs_to_one_vm_at_a_time(tester_lab: Lab) -> None:
    image = tester_lab.disk("mine.img", 1)
    with tester_lab.start("--rwdisk", image, end="stay") as first:
        first.wait_ready()
        for option in ("--rwdisk", "--disk"):
            with tester_lab.start(option, image) as second:
                assert second.wait() == 1
            assert f"{option} {image}: locked by another process" in second.log
            assert second.console == ""
        assert first.control("stop").status == 0


def test_drivers_of_disk_and_rng_come_and_go_twenty_times(lab: Lab) -> None:
    script = """
    cycle() { # DRIVER DEVICE
        rounds=0
        cd /sys/bus/virtio/drivers/$1
        while [ $rounds -lt 20 ] && echo $2 >unbind && [ ! -e $2 ] && echo $2 >bind; do
            rounds=$((rounds + 1))
        done
        echo $rounds
    }
    disk=$(basename $(readlink -f /sys/block/vdb/device))
    fact before sh -c 'sha256sum </dev/vdb'
    fact disk cycle virtio_blk $disk
    fact after sh -c 'sha256sum </dev/vdb'
    cd /sys/bus/virtio/drivers/virtio_rng
    fact rng cycle virtio_rng $(basename virtio*)
    fact random sh -c 'head -c 16 /dev/hwrng | wc -c'
    fact errors /bin/dmesg -l emerg,alert,crit,err
    """
    disk = lab.disk("data.img", 4)
    with lab.start("--rwdisk", disk, script=script) as vm:
        facts = vm.finish()
    assert (facts["disk"], facts["rng"], facts["random"]) == ("20", "20", "16")
    assert facts["before"] == facts["after"]
    assert facts["errors"] == ""
