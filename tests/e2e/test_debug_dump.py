# SPDX-License-Identifier: BSD-3-Clause
"""``crosvm debug dump`` beside a stock kernel: while it works, and when it has nothing to do."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, Final

from tests.e2e.support import GUEST_SECONDS

if TYPE_CHECKING:
    from tests.e2e.support import Lab, Vm

# Whom a queue of a quiet guest may wait for: nobody wants anything, or buffers are there for input.
QUIET: Final = ("idle: ", "waits for the host: ", "not set up by the driver")

WORK: Final = """
fact ready echo yes
read -r line
(dd if=/dev/vdb of=/dev/null bs=4k count=2000 iflag=direct 2>/dev/null) &
dd if=/dev/vdb of=/dev/null bs=4k count=2000 iflag=direct 2>/dev/null
wait
fact done echo yes
read -r line
"""


def dump(lab: Lab, vm: Vm) -> dict[str, Any]:
    result = lab.host.run(["crosvm", "debug", "dump", "--json", vm.socket], timeout=GUEST_SECONDS)
    assert result.status == 0, result.stderr
    found: dict[str, Any] = json.loads(result.stdout)
    return found


def queues(found: dict[str, Any]) -> dict[tuple[str, int], dict[str, Any]]:
    return {
        (device["name"], queue["index"]): queue
        for device in found["devices"]
        for queue in device["queues"]
    }


def test_every_queue_of_a_guest_is_told_at_work_and_at_rest(lab: Lab) -> None:
    disk = lab.disk("disk.img", 16)
    options = (
        *("-c", "2", "--rwdisk", disk, "--balloon", "0"),
        *("--net", "host-ip=10.9.0.1,netmask=255.255.255.0"),
        *("--serial", "type=stdout,num=1,console,stdin"),
    )
    with lab.start(*options, script=WORK) as vm:
        vm.wait_for("@ready=yes")
        vm.command.send("go\n")
        at_work = [dump(lab, vm) for _ in range(5)]
        vm.wait_for("@done=yes")
        lab.host.shell("sleep 2")
        before, after = dump(lab, vm), dump(lab, vm)
        text = lab.host.shell(f"crosvm debug dump {vm.socket}")
        vm.command.send("end\n")
        vm.finish()

    taken = [queues(found)["block:1", 0]["device"]["ring"]["next_avail"] for found in at_work]
    assert len(set(taken)) > 1, taken
    for name, queue in queues(after).items():
        assert queue["verdict"].startswith(QUIET), (name, queue)
        if queue["transport"]["enabled"]:
            assert queue["ring"]["used_idx"] == queue["device"]["ring"]["published"]
            if name[0] != "rng":  # the kernel refills its pool whenever it wants
                assert queue["ring"] == queues(before)[name]["ring"]
    assert [vcpu["place"] for vcpu in after["vcpus"]] == ["guest", "guest"]
    assert {vcpu["task"]["state"] for vcpu in after["vcpus"]} <= {"S", "R"}
    assert [device["alive"] for device in after["devices"]] == [True] * len(after["devices"])
    assert "vcpu 1 (thread " in text
