# SPDX-License-Identifier: BSD-3-Clause
"""vCPUs that come to a guest with a stock kernel, work, go, and come again."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from tests.e2e.support import CLOUD_BZIMAGE, GUEST_SECONDS

if TYPE_CHECKING:
    from tests.e2e.support import Lab

# The guest says when it waits, and the test then acts. Each vCPU of the start reads the disk.
SCRIPT: Final = """
sys=/sys/devices/system/cpu
online() {
    for cpu in "$@"; do
        until [ -e $sys/cpu$cpu/online ]; do sleep 0.1; done
        echo 1 >$sys/cpu$cpu/online
    done
}
gone() { for cpu in "$@"; do while [ -e $sys/cpu$cpu ]; do sleep 0.1; done; done; }
work() { while :; do dd if=/dev/vda of=/dev/null bs=64k count=64 iflag=direct 2>/dev/null; done; }
fact possible cat $sys/possible
work & work &
echo waits-1
online 1 2 3
fact four nproc
fact works taskset 8 dd if=/dev/vda of=/dev/null bs=64k count=64 iflag=direct
echo waits-2
gone 3 2
fact two nproc
echo waits-3
online 2 3
fact again nproc
kill %1 %2
fact errors /bin/dmesg -l emerg,alert,crit,err
"""


def test_vcpus_come_work_go_and_come_again(tester_lab: Lab) -> None:
    lab = tester_lab
    api = f"{lab.folder}/api"

    def run(*words: str) -> str:
        result = lab.host.run(["crosvm", *words], timeout=GUEST_SECONDS)
        assert result.status == 0, result.stderr
        return result.stdout

    options = ("-c", "1,max=4", "--api-socket", api)
    with lab.start(*options, kernel=CLOUD_BZIMAGE, script=SCRIPT) as vm:
        vm.wait_for("waits-1")
        run("resize", "--cpus", "4", vm.socket)
        vm.wait_for("waits-2")
        run("ch-remote", "--api-socket", api, "resize", "--cpus", "2")
        vm.wait_for("waits-3")
        assert '"boot_vcpus":2' in run("ch-remote", "--api-socket", api, "info")
        run("resize", "--cpus", "4", vm.socket)
        facts = vm.finish()

    assert facts["possible"] == "0-3"
    assert (facts["four"], facts["two"], facts["again"]) == ("4", "2", "4")
    assert "64+0 records in" in facts["works"]
    assert facts["errors"] == ""
