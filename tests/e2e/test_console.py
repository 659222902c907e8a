# SPDX-License-Identifier: BSD-3-Clause
"""The virtio console with a stock Linux driver: a shell on hvc0, sizes, ports, stopped readers."""

from __future__ import annotations

import re
import time
from typing import TYPE_CHECKING, Final

from tests.e2e.support import BUILTIN, GUEST_SECONDS, ROOT_SQUASHFS

if TYPE_CHECKING:
    from tests.e2e.support import Lab, Vm
    from tests.kvmhost.fixture import Command

IN_TERMINAL: Final = "/project/tests/e2e/in_terminal.py"
CONSOLE: Final = "hardware=virtio-console"
LEAVE: Final = b"\x01x"


def pty_of(vm: Vm, place: str) -> str:
    """Return the name of the pseudo-terminal that crosvm said."""
    deadline = time.monotonic() + GUEST_SECONDS
    while not (found := re.search(rf"{place} is (/dev/pts/\d+)", vm.log)):
        assert time.monotonic() < deadline, vm.log
        time.sleep(0.1)
    return found[1]


def ask(shell: Command, question: str, answer: str) -> None:
    """Type a command and wait for its output, which is not what was typed."""
    shell.send(f"{question}\r")
    shell.wait_for(rf"(?m)^{answer}\r*$", GUEST_SECONDS)


def test_shell_on_hvc0_follows_the_size_of_the_terminal_and_is_left(any_lab: Lab) -> None:
    argv = ["python3", "-I", IN_TERMINAL, "100x30", "crosvm", "run", "-r", ROOT_SQUASHFS]
    argv += ["--serial", f"{CONSOLE},type=stdout,stdin,console", "-p", "quiet", BUILTIN.path]
    with any_lab.host.start(argv, user=any_lab.user) as shell:
        shell.wait_for("guest: up", GUEST_SECONDS)
        ask(shell, "tty; stty size", "30 100")
        assert re.search(r"(?m)^/dev/hvc0\r*$", shell.stdout)
        shell.send(b"\x1d132x50\n")
        ask(shell, "sleep 1; stty size", "50 132")
        # Ctrl-C is for a program: between a line and the program that it starts it is for nobody.
        ask(shell, "sh -c 'echo fore$((1+1))ground; exec sleep 1000'", "fore2ground")
        shell.send(b"\x03")
        ask(shell, "echo in$((1+1))terrupted", "in2terrupted")
        shell.send(LEAVE)
        assert shell.wait(GUEST_SECONDS) == 0


PORTS_SCRIPT: Final = """
fact consoles cat /proc/consoles
fact names cat /sys/class/virtio-ports/*/name
for d in /sys/class/virtio-ports/*/name; do
    read -r name <$d
    d=${d%/name}
    eval "p_${name#org.}=/dev/${d##*/}"
done
exec 3<>$p_agent
echo to the agent >&3
fact answer head -n 1 <&3
echo to hvc1 >/dev/hvc1
fact size stty size -F /dev/hvc1
read -r line </dev/hvc1
fact typed echo $line
fact resized stty size -F /dev/hvc1
"""


def test_ports_have_names_and_lead_where_they_should(lab: Lab) -> None:
    lab.shell("mkfifo fifo; (echo to the guest >fifo) >/dev/null 2>&1 &")
    options = []
    for port in (
        f"type=file,path={lab.folder}/agent,num=5,name=org.agent,input={lab.folder}/fifo",
        f"type=file,path={lab.folder}/quiet,num=3,name=org.quiet",
        f"type=file,path={lab.folder}/hvc0,num=1",
        "type=pty,num=2",
    ):
        options += ["--serial", f"{CONSOLE},{port}"]
    options += ["--serial", "type=stdout,console,stdin"]
    with lab.start(*options, script=PORTS_SCRIPT) as vm:
        user_side = pty_of(vm, "virtio-console num=2")
        lab.shell(f"stty -F {user_side} cols 91 rows 37")
        shown = lab.shell(f"exec 3<>{user_side}; head -n 1 <&3; sleep 3; echo hello >&3")
        facts = vm.finish()
    assert "to hvc1" in shown
    assert facts["names"] == "org.quiet org.agent"
    assert facts["answer"] == "to the guest"
    assert facts["typed"] == "hello"
    assert lab.shell("cat agent") == "to the agent\n"
    assert lab.shell("cat quiet hvc0") == ""
    assert facts["resized"] == "37 91"


STOPPED_SCRIPT: Final = """
fact console timeout 60 dd if=/dev/zero of=/dev/hvc0 bs=4096 count=128
timeout 3 dd if=/dev/zero of=/dev/vport2p1 bs=4096 count=256
fact data echo $?
fact uptime cut -d. -f1 /proc/uptime
"""


def test_stopped_readers_hold_up_neither_the_guest_nor_the_host(lab: Lab) -> None:
    lab.shell("mkfifo pipe")
    options = ["--serial", f"{CONSOLE},type=pty"]
    options += ["--serial", f"{CONSOLE},type=file,path={lab.folder}/pipe,num=2,name=data"]
    options += ["--serial", "type=stdout,console,stdin"]
    with lab.start(*options, script=STOPPED_SCRIPT, end="stay") as vm:
        user_side = pty_of(vm, "virtio-console num=1")
        vm.wait_ready()
        facts = vm.facts()
        (device,) = (process for process in vm.processes() if process["name"] == "console")
        kept = lab.shell(f"timeout 5 head -c 100000 <{user_side} | wc -c")
    assert facts["console"] == "128+0 records in 128+0 records out"
    assert facts["data"] == "143"  # it waited, and was ended
    assert int(device["status"]["VmRSS"].split()[0]) < 64 * 1024
    assert int(kept) == 100_000


REBIND_SCRIPT: Final = """
cd /sys/bus/virtio/drivers/virtio_console
device=$(echo virtio*)
for round in $(seq 20); do
    echo $device >unbind
    echo $device >bind
    until [ -e /dev/vport*p0 ]; do :; done
    echo round $round >$(echo /dev/vport*p0)
done
fact kernel uname -r
"""


def test_driver_may_come_and_go_twenty_times(lab: Lab) -> None:
    serial = f"{CONSOLE},type=file,path={lab.folder}/out,name=data"
    with lab.start("--serial", serial, script=REBIND_SCRIPT) as vm:
        facts = vm.finish()
    assert facts["kernel"]
    assert lab.shell("cat out") == "".join(f"round {n}\n" for n in range(1, 21))
    assert "WARN" not in vm.log


def test_suspend_holds_the_console_and_resume_goes_on(lab: Lab) -> None:
    serial = f"{CONSOLE},type=file,path={lab.folder}/out"
    script = "echo loop; (while :; do echo tick; done) >/dev/hvc0"
    with lab.start("--serial", serial, script=script) as vm:
        vm.wait_for("loop")
        lab.shell("until [ -s out ]; do sleep 0.1; done")
        assert vm.control("suspend").status == 0
        held = lab.shell("wc -c <out")
        assert lab.shell("sleep 1; wc -c <out") == held
        assert vm.control("resume").status == 0
        lab.shell(f"until [ $(wc -c <out) -gt {int(held)} ]; do sleep 0.1; done")
        assert vm.control("stop").status == 0
        assert vm.wait() == 0
    *lines, last = lab.shell("tr -d '\\r' <out").split("\n")
    assert set(lines) == {"tick"}
    assert "tick".startswith(last)  # the stop may have come in the midst of it
