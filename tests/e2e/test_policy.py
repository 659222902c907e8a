# SPDX-License-Identifier: BSD-3-Clause
"""Policies that are recorded while Linux runs, and Linux under the policies that were recorded."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from tests.e2e.support import Lab

NET: Final = ("--net", "host-ip=10.9.0.1,netmask=255.255.255.0")

# Everything that a guest may ask of a disk and of a source of entropy.
WORK: Final = """
fact read sh -c 'dd if=/dev/vdb of=/dev/null bs=64k count=8 iflag=direct 2>/dev/null; echo $?'
fact write sh -c 'dd if=/dev/zero of=/dev/vdb bs=4k count=8 oflag=direct conv=fsync 2>&-; echo $?'
fact discard sh -c 'blkdiscard -o 0 -l 65536 /dev/vdb; echo $?'
fact entropy sh -c 'head -c 512 /dev/hwrng | wc -c'
"""
PING: Final = """
ip link set eth0 up; ip addr add 10.9.0.2/24 dev eth0
fact ping sh -c 'ping -c 2 -W 20 10.9.0.1 >/dev/null; echo $?'
"""
FACTS: Final = {"read": "0", "write": "0", "discard": "0", "entropy": "512"}


def recording(folder: str, *devices: str) -> tuple[str, ...]:
    """Return what stands before ``run`` to record it."""
    return ("--extended-status", "policy", "record", *devices, "-o", folder, "--")


def assert_within_the_built_in_policies(log: str, *devices: str) -> None:
    for device in devices:
        line = rf"{device}_device\.policy: allows \d+ system calls, .*, nothing beyond it"
        assert re.search(line, log), log


def test_linux_runs_under_the_policies_that_were_recorded(lab: Lab) -> None:
    folder, script = f"{lab.folder}/policies", WORK + PING
    options = ("--rwdisk", lab.disk("data.img", 4), *NET)
    with lab.start(*options, script=script, before=recording(folder, "all")) as vm:
        assert vm.finish() == {**FACTS, "ping": "0"}
        assert_within_the_built_in_policies(vm.log, "block", "net", "rng")
    with lab.start(*options, "--seccomp-policy-dir", folder, script=script) as vm:
        assert vm.finish() == {**FACTS, "ping": "0"}
    shown = lab.shell(f"crosvm policy show block --policy-dir {folder}")
    assert "mode (arg1) is FALLOC_FL_KEEP_SIZE | FALLOC_FL_PUNCH_HOLE" in " ".join(shown.split())


def test_ordinary_user_records_disk_and_entropy(tester_lab: Lab) -> None:
    lab, folder = tester_lab, f"{tester_lab.folder}/policies"
    disk = lab.disk("data.img", 4)
    before = recording(folder, "block", "rng")
    with lab.start("--rwdisk", disk, script=WORK, before=before) as vm:
        assert vm.finish() == FACTS
        assert_within_the_built_in_policies(vm.log, "block", "rng")
    simulate = f"crosvm policy simulate rng getrandom 0 16 0 --policy-dir {folder}"
    assert f"{folder}/rng_device.policy:" in lab.shell(simulate)
