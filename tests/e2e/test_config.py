# SPDX-License-Identifier: BSD-3-Clause
"""A VM that a configuration file describes, as Cloud Hypervisor's vm.create does."""

from __future__ import annotations

import base64
import json
from typing import TYPE_CHECKING

from tests.e2e.support import BUILTIN, ROOT_SQUASHFS

if TYPE_CHECKING:
    from tests.e2e.support import Lab

SCRIPT = r"""
fact() { n=$1; shift; set -- "$("$@" 2>&1)"; echo "@$n="$1; }
fact cpus nproc
fact memory awk '/MemTotal/ { print $2 }' /proc/meminfo
fact disks sh -c 'cat /sys/block/vd[abc]/ro /sys/block/vd[abc]/size'
fact serial cat /sys/block/vdb/serial
fact console sh -c 'ls /sys/class/tty | grep hvc0'
"""


def test_a_file_and_options_on_top_of_it_make_a_guest(tester_lab: Lab) -> None:
    encoded = base64.b64encode(SCRIPT.encode()).decode()
    words = "console=ttyS0 root=/dev/vda ro quiet crosvm.end=poweroff"
    config = {
        "payload": {"kernel": BUILTIN.path, "cmdline": f"{words} crosvm.run={encoded}"},
        "cpus": {"boot_vcpus": 1, "max_vcpus": 4},
        "memory": {"size": 192 << 20},
        "disks": [
            {"path": ROOT_SQUASHFS, "readonly": True},
            {"path": tester_lab.disk("data.img", 4), "serial": "data", "image_type": "Raw"},
        ],
        "serial": {"mode": "Tty"},
        "console": {"mode": "File", "file": f"{tester_lab.folder}/console.log"},
        "future": {"key": 1},
    }
    path = f"{tester_lab.folder}/vm.json"
    tester_lab.host.write(path, json.dumps(config).encode())
    checked = tester_lab.host.run(["crosvm", "config", "check", path], user=tester_lab.user)
    assert (checked.status, checked.stderr) == (0, "")
    options = ["-c", "2", "-d", tester_lab.disk("more.img", 1)]
    with tester_lab.run("vm", ["run", "--config", path, *options]) as vm:
        facts = vm.finish()
    sectors = int(facts["disks"].split()[3])
    assert facts["disks"] == f"1 0 1 {sectors} {4 << 11} {1 << 11}"
    assert (facts["cpus"], facts["serial"], facts["console"]) == ("2", "data", "hvc0")
    assert 140 << 10 < int(facts["memory"]) < 192 << 10
    assert "no effect" not in vm.log
