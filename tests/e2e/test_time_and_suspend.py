# SPDX-License-Identifier: BSD-3-Clause
"""Serial ports, the power button, and a guest that is held still."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from tests.e2e.support import Lab, Vm

# struct input_event: 16 bytes of time, type EV_KEY, code KEY_POWER, value pressed.
POWER_KEY_PRESSED: Final = "0100" + "7400" + "01000000"

SERIAL_PORTS: Final = """
fact ready echo yes
read -r line
fact line echo "$line"
echo "to the second port" >/dev/ttyS1
for c in d e b u g; do printf $c | dd of=/dev/port bs=1 seek=$((0x402)) 2>/dev/null; done
"""


def test_serial_ports_go_where_they_shall_and_stdin_comes_in(any_lab: Lab) -> None:
    options = (
        *("--serial", "type=stdout,num=1,console,stdin"),
        *("--serial", f"type=file,path={any_lab.folder}/second.log,num=2"),
        *("--serial", f"type=file,hardware=debugcon,path={any_lab.folder}/debug.log"),
    )
    with any_lab.start(*options, script=SERIAL_PORTS) as vm:
        vm.wait_for("@ready=yes")
        vm.command.send("typed by the host\n")
        facts = vm.finish()
    assert facts["line"] == "typed by the host"
    assert any_lab.shell("tr -d '\\r' <second.log") == "to the second port\n"
    assert any_lab.shell("cat debug.log") == "debug"
    assert "second port" not in vm.console


def test_console_in_a_file_and_second_port_on_stdout(tester_lab: Lab) -> None:
    options = (
        *("--serial", f"type=file,path={tester_lab.folder}/con.log,hardware=serial,num=1,console"),
        *("--serial", "type=stdout,num=2"),
    )
    with tester_lab.start(*options, script="echo beside the console >/dev/ttyS1", before=()) as vm:
        assert vm.wait() == 0
    assert vm.console == "beside the console\r\n"
    assert "guest: exit 0" in tester_lab.shell("cat con.log")


def test_power_button_reaches_the_guest(lab: Lab) -> None:
    script = """
    grep -q 'Power Button' /sys/class/input/event0/device/name || exit 1
    exec 3</dev/input/event0
    fact waiting echo yes
    fact event sh -c 'head -c 24 <&3 | xxd -p -c 24'
    """
    with lab.start(script=script) as vm:
        vm.wait_for("@waiting=yes")
        assert vm.control("powerbtn").status == 0
        facts = vm.finish()
    assert facts["event"][32:] == POWER_KEY_PRESSED


# Two processors: one ticks, the other keeps a disk busy; a line on stdin ends both.
TICK_AND_COPY: Final = """
cp_all() { dd if=/dev/vdb of=/dev/vdc bs=8k oflag=direct 2>/dev/null; }
{ while [ ! -e /tmp/enough ]; do cp_all; done; cp_all; touch /tmp/copied; } &
{ i=0; while [ ! -e /tmp/enough ]; do i=$((i + 1)); echo "tick $i" >/dev/ttyS1; done; } &
fact ready echo yes
read -r line
touch /tmp/enough
wait
echo 3 >/proc/sys/vm/drop_caches
fact sums sh -c 'sha256sum </dev/vdb; sha256sum </dev/vdc'
fact errors /bin/dmesg -l emerg,alert,crit,err
"""


def ticks(lab: Lab) -> int:
    """Return the number of the guest's last tick."""
    return int(re.findall(r"tick (\d+)\r?\n", lab.shell("tail -c 200 ticks"))[-1])


def wait_for_ticks(lab: Lab, more_than: int) -> None:
    lab.shell(f"until [ $(wc -l <ticks) -gt {more_than} ]; do sleep 0.05; done")


def vcpu_time(lab: Lab, vm: Vm) -> str:
    """Return the processor time that each thread but the first has used: the vCPUs'."""
    pid = vm.pid
    return lab.host.shell(
        f"cd /proc/{pid}/task; for t in *; do [ $t = {pid} ] || cut -d ' ' -f 14,15 $t/stat; done"
    )


def test_suspend_holds_the_guest_still_and_resume_goes_on(tester_lab: Lab) -> None:
    tester_lab.shell("head -c 1M /dev/urandom >source.img")
    target = tester_lab.disk("target.img", 1)
    options = (
        *("-c", "2", "-d", f"{tester_lab.folder}/source.img", "--rwdisk", target),
        *("--serial", "type=stdout,num=1,console,stdin"),
        *("--serial", f"type=file,path={tester_lab.folder}/ticks,num=2"),
    )
    with tester_lab.start(*options, script=TICK_AND_COPY) as vm:
        vm.wait_for("@ready=yes")
        seen = 0
        for _ in range(2):
            wait_for_ticks(tester_lab, seen + 5)
            assert vm.control("suspend").status == 0
            assert vm.control("suspend").status == 0, "a second one changes nothing"
            still = (ticks(tester_lab), vcpu_time(tester_lab, vm))
            assert vm.control("suspend").status == 0
            assert (ticks(tester_lab), vcpu_time(tester_lab, vm)) == still
            assert vm.command.status is None
            assert vm.control("resume").status == 0
            seen = still[0]
        wait_for_ticks(tester_lab, seen + 5)
        vm.command.send("enough\n")
        facts = vm.finish()
    first, second = re.findall(r"[0-9a-f]{64}", facts["sums"])
    assert first == second
    assert facts["errors"] == ""
    tester_lab.shell("cmp source.img target.img")
