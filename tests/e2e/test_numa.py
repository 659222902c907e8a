# SPDX-License-Identifier: BSD-3-Clause
"""A guest with a stock kernel and two NUMA nodes, one of which gets a CPU while it runs."""

from __future__ import annotations

import base64
from typing import TYPE_CHECKING, Final

from tests.e2e.support import CLOUD_BZIMAGE, GUEST_SECONDS, ROOT_SQUASHFS

if TYPE_CHECKING:
    from tests.e2e.support import Lab

# The guest says when it waits, and the test then acts.
SCRIPT: Final = """
fact() { n=$1; shift; set -- "$("$@" 2>&1)"; echo "@$n="$1; }
cd /sys/devices/system/node
fact online cat online
fact cpus sh -c 'cat node*/cpulist'
fact distance sh -c 'cat node*/distance'
fact memory sh -c 'sed -n "s/.*MemTotal: *//p" node*/meminfo'
fact bridge cat /sys/devices/pci0000:00/0000:00:00.0/numa_node
echo waits-1
until [ -e ../cpu/cpu3/online ]; do sleep 0.1; done
echo 1 >../cpu/cpu3/online
fact later cat node1/cpulist
fact errors /bin/dmesg -l emerg,alert,crit,err
echo waits-2
sleep 1000
"""


def test_guest_sees_two_nodes_and_a_cpu_comes_to_one(lab: Lab) -> None:
    socket = f"{lab.folder}/api"

    def remote(*words: str) -> None:
        argv = ["crosvm", "ch-remote", "--api-socket", socket, *words]
        result = lab.host.run(argv, timeout=GUEST_SECONDS)
        assert result.status == 0, result.stderr

    script = base64.b64encode(SCRIPT.encode()).decode()
    options = {
        "--api-socket": [socket],
        "--kernel": [CLOUD_BZIMAGE.path],
        "--initramfs": [CLOUD_BZIMAGE.initrd or ""],
        "--disk": [f"path={ROOT_SQUASHFS},readonly=on,image_type=raw"],
        "--cmdline": [f"quiet console=ttyS0 root=/dev/vda ro crosvm.run={script}"],
        "--cpus": ["boot=3,max=4"],
        "--serial": ["tty"],
        "--console": ["off"],
        "--memory": ["size=0"],
        "--memory-zone": ["id=a,size=192M,host_numa_node=0", "id=b,size=128M"],
        "--numa": [
            "guest_numa_id=0,cpus=[0-1],distances=[1@25],memory_zones=[a]",
            "guest_numa_id=1,cpus=[2-3],distances=[0@30],memory_zones=[b]",
        ],
    }
    words = [word for option, values in options.items() for word in (option, *values)]
    with lab.run("ch", ["ch", *words]) as vm:
        vm.wait_for("waits-1")
        remote("resize", "--cpus", "4")
        vm.wait_for("waits-2")
        facts = vm.facts()
        remote("shutdown-vmm")
        vm.wait()

    assert facts["online"] == "0-1"
    assert facts["cpus"].split() == ["0-1", "2"]
    assert facts["distance"].split() == ["10", "25", "30", "10"]
    sizes = [int(size) for size in facts["memory"].split() if size != "kB"]
    assert [size > 100 << 10 for size in sizes] == [True, True]
    assert sizes[1] <= 128 << 10
    assert facts["bridge"] == "0"
    assert facts["later"] == "2-3"
    assert facts["errors"] == ""
