# SPDX-License-Identifier: BSD-3-Clause
"""Devices plugged into a running VM with a stock kernel, used by its drivers, and removed."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from tests.e2e.support import CLOUD_BZIMAGE, GUEST_SECONDS

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
