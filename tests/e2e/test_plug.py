# SPDX-License-Identifier: BSD-3-Clause
"""Devices plugged into a running VM with a stock kernel, used by its drivers, and removed."""

from __future__ import annotations

import base64
import json
from typing import TYPE_CHECKING, Final

from tests.e2e.support import CLOUD_BZIMAGE, GUEST_SECONDS, ROOT_SQUASHFS

if TYPE_CHECKING:
    from tests.e2e.support import Lab, Vm

DATA_MIB: Final = 4

# The guest says when it waits, and the test then acts; vda is the root disk.
PLUG_AND_REMOVE: Final = """
there() {
    n=0
    until [ -b /dev/vdb ]; do
        n=$((n + 1))
        if [ $n = 300 ]; then dmesg | tail -n 40; lspci; fi
        sleep 0.1
    done
}
gone() { while [ -b /dev/vdb ]; do sleep 0.1; done; }
echo waits-1
there
fact place readlink -f /sys/block/vdb/device
fact size cat /sys/block/vdb/size
fact read_sum sha256sum /dev/vdb
dd if=/dev/zero of=/dev/vdb bs=1M count=1 conv=fsync 2>/dev/null
echo waits-2
gone
echo waits-3
there
fact again readlink -f /sys/block/vdb/device
fact read_only cat /sys/block/vdb/ro
echo waits-4
gone
fact errors /bin/dmesg -l emerg,alert,crit,err
"""


def control(vm: Vm, lab: Lab, *words: str) -> str:
    result = lab.host.run(["crosvm", *words, vm.socket], timeout=GUEST_SECONDS)
    assert result.status == 0, result.stderr
    return result.stdout.strip()


def test_disk_is_plugged_in_used_removed_and_plugged_in_again(any_lab: Lab) -> None:
    image = f"{any_lab.folder}/data.img"
    data_sum = any_lab.shell(
        f"head -c {DATA_MIB}M /dev/urandom >data.img; sha256sum <data.img"
    ).split()[0]
    with any_lab.start("-c", "2", kernel=CLOUD_BZIMAGE, script=PLUG_AND_REMOVE) as vm:
        vm.wait_for("waits-1")
        place = control(vm, any_lab, "plug", f"disk={image},device=data,pci-slot=6")
        assert place == "data 0000:00:06.0"
        vm.wait_for("waits-2")
        control(vm, any_lab, "unplug", "data")
        vm.wait_for("waits-3")
        assert control(vm, any_lab, "plug", f"disk={image},ro,device=data").startswith("data ")
        vm.wait_for("waits-4")
        control(vm, any_lab, "unplug", "data")
        facts = vm.finish()

    assert "0000:00:06.0" in facts["place"]
    assert facts["size"] == str(DATA_MIB << 11)
    assert facts["read_sum"].split()[0] == data_sum
    assert any_lab.shell("cmp -n 1048576 data.img /dev/zero && echo same").strip() == "same"
    assert "0000:00:06.0" not in facts["again"]
    assert facts["read_only"] == "1"
    assert facts["errors"] == ""


VSOCK: Final = """
driver=/sys/bus/virtio/drivers/vmw_vsock_virtio_transport
is_there() { for each in $driver/virtio*; do [ -e $each ] && return 0; done; return 1; }
there() { until is_there; do sleep 0.1; done; }
gone() { while is_there; do sleep 0.1; done; }
echo waits-1
there
fact from_host socat -u VSOCK-CONNECT:2:5001 -
echo waits-2
gone
echo waits-3
there
fact again socat -u VSOCK-CONNECT:2:5001 -
fact errors /bin/dmesg -l emerg,alert,crit,err
"""


def test_vsock_is_plugged_in_used_removed_and_plugged_in_again(any_lab: Lab) -> None:
    lab = any_lab
    path = f"{lab.folder}/v.sock"
    listen = ["socat", f"UNIX-LISTEN:{path}_5001,fork", "SYSTEM:echo hello"]
    with (
        lab.host.start(listen, user=lab.user),
        lab.start(kernel=CLOUD_BZIMAGE, script=VSOCK) as vm,
    ):
        vm.wait_for("waits-1")
        vsock = f"vsock=77,socket={path}"
        assert control(vm, lab, "plug", vsock) == "vsock 0000:00:03.0"
        vm.wait_for("waits-2")
        control(vm, lab, "unplug", "vsock")
        vm.wait_for("waits-3")
        lab.shell(f"while [ -e {path} ]; do sleep 0.1; done")
        assert control(vm, lab, "plug", vsock) == "vsock 0000:00:03.0"
        facts = vm.finish()
    assert (facts["from_host"], facts["again"], facts["errors"]) == ("hello", "hello", "")


# The root disk is on segment 1; the kernel finds it as it does any other.
SEGMENTS: Final = """
echo "@root=$(readlink -f /sys/block/vda/device)"
echo "@roots=$(ls -d /sys/devices/pci00* | wc -l)"
echo waits-1
until [ -b /dev/vdb ]; do sleep 0.1; done
echo "@place=$(readlink -f /sys/block/vdb/device)"
echo "@sum=$(sha256sum /dev/vdb)"
echo waits-2
while [ -b /dev/vdb ]; do sleep 0.1; done
echo "@errors=$(/bin/dmesg -l emerg,alert,crit,err)"
"""


def test_disks_of_other_segments_are_found_used_plugged_in_and_removed(any_lab: Lab) -> None:
    lab = any_lab
    sum_of_data = lab.shell("head -c 1M /dev/urandom >data.img; sha256sum <data.img").split()[0]
    script = base64.b64encode(SEGMENTS.encode()).decode()
    words = f"console=ttyS0 root=/dev/vda ro quiet crosvm.end=poweroff crosvm.run={script}"
    config = {
        "payload": {
            "kernel": CLOUD_BZIMAGE.path,
            "cmdline": words,
            "initramfs": CLOUD_BZIMAGE.initrd,
        },
        "cpus": {"boot_vcpus": 1, "max_vcpus": 1},
        "memory": {"size": 256 << 20},
        "platform": {"num_pci_segments": 16},
        "disks": [{"path": ROOT_SQUASHFS, "readonly": True, "pci_segment": 1}],
        "serial": {"mode": "Tty"},
        "console": {"mode": "Off"},
    }
    lab.host.write(f"{lab.folder}/vm.json", json.dumps(config).encode())
    socket = f"{lab.folder}/vm.sock"
    with lab.run("vm", ["run", "--config", f"{lab.folder}/vm.json", "-s", socket]) as vm:
        vm.wait_for("waits-1")
        disk = f"disk={lab.folder}/data.img,device=data,pci-segment=15"
        assert control(vm, lab, "plug", disk) == "data 000f:00:00.0"
        vm.wait_for("waits-2")
        control(vm, lab, "unplug", "data")
        facts = vm.finish()
    assert "0001:00:00.0" in facts["root"]
    assert facts["roots"] == "16"
    assert "000f:00:00.0" in facts["place"]
    assert facts["sum"].split()[0] == sum_of_data
    assert facts["errors"] == ""


# The host has 10.78.0.1 on its TAP.
CARD: Final = """
there() { until [ -e /sys/class/net/eth0 ]; do sleep 0.1; done; }
gone() { while [ -e /sys/class/net/eth0 ]; do sleep 0.1; done; }
use() {
    ip link set eth0 up
    ip addr add 10.78.0.2/24 dev eth0
    fact $1 sh -c 'ping -c 3 -s 8000 10.78.0.1 | grep packets'
}
echo waits-1
there
fact mac cat /sys/class/net/eth0/address
use first
echo waits-2
gone
echo waits-3
there
use second
"""


def test_card_is_plugged_in_used_removed_and_plugged_in_again(tester_lab: Lab) -> None:
    lab = tester_lab
    lab.host.shell(
        "ip tuntap add dev tapP mode tap user tester; ip addr add 10.78.0.1/24 dev tapP\n"
        "ip link set tapP up"
    )
    try:
        with lab.start(kernel=CLOUD_BZIMAGE, script=CARD) as vm:
            vm.wait_for("waits-1")
            card = "net=tapP,mac=52:54:00:78:00:02,device=lan"
            assert control(vm, lab, "plug", card) == "lan 0000:00:03.0"
            vm.wait_for("waits-2")
            control(vm, lab, "unplug", "lan")
            vm.wait_for("waits-3")
            assert control(vm, lab, "plug", card) == "lan 0000:00:03.0"
            facts = vm.finish()
    finally:
        lab.host.shell("ip link del tapP")

    assert facts["mac"] == "52:54:00:78:00:02"
    for words in (facts["first"], facts["second"]):
        assert "3 packets transmitted, 3 packets received" in words
