# SPDX-License-Identifier: BSD-3-Clause
"""Console, balloon, rng and vsock of real guests: their processes are killed while in use."""

from __future__ import annotations

import json
import re
import time
from contextlib import ExitStack
from itertools import takewhile
from typing import TYPE_CHECKING, Final

from tests.e2e.support import GUEST_SECONDS

if TYPE_CHECKING:
    from tests.e2e.support import Lab, Vm
    from tests.kvmhost.fixture import Command

PEER: Final = "/project/tests/e2e/vsock_peer.py"
CONSOLE: Final = "hardware=virtio-console"
CID: Final = 78
MIB: Final = 1 << 20

LINES: Final = 200
RANDOM_BYTES: Final = 50_000
NOISE_BYTES: Final = 200_000

# The most that one write of a kernel's console driver may come twice.
PIECE_CHARS: Final = 64

# 6001 is kept open until it ends, 6002 takes bytes; 80 echoes.
USE_VSOCK: Final = f"""
socat VSOCK-LISTEN:80,fork,backlog=16 PIPE &
(socat -u VSOCK-CONNECT:2:6001 - 2>/tmp/old; fact old echo $? $(cat /tmp/old)) &
read word </dev/ttyS0
head -c {NOISE_BYTES} /dev/urandom >/tmp/noise
fact sum sh -c 'sha256sum </tmp/noise'
socat -u OPEN:/tmp/noise VSOCK-CONNECT:2:6002
fact errors /bin/dmesg -l emerg,alert,crit,err
fact done echo yes
read word </dev/ttyS0
"""

USE_DEVICES: Final = f"""
(i=0; while [ $i -lt {LINES} ]; do echo line $i; i=$((i+1)); done >/dev/hvc0; fact lines echo $i) &
(fact random sh -c 'head -c {RANDOM_BYTES} /dev/hwrng | wc -c') &
exec 3<>$(echo /dev/vport*p1)
(read -r early <&3; fact early echo $early; read -r late <&3; fact late echo $late; echo bye >&3) &
{USE_VSOCK}
"""


class Killer:
    """Kill the processes of devices, and wait until others have taken their places."""

    def __init__(self, lab: Lab, vm: Vm) -> None:
        self._lab = lab
        self._vm = vm
        told = lab.host.run(["crosvm", "devices", "--json", vm.socket], timeout=GUEST_SECONDS)
        assert told.status == 0, told.stderr
        self._pids = {one["name"]: one["pid"] for one in json.loads(told.stdout)}

    def kill(self, *names: str) -> None:
        ended = {name: self._pids[name] for name in names}
        self._lab.host.shell("kill -9 " + " ".join(map(str, ended.values())))
        deadline = time.monotonic() + GUEST_SECONDS
        for name, pid in ended.items():
            while self._pids[name] == pid:
                assert time.monotonic() < deadline, self._vm.log
                successors = re.findall(rf" {name}: process (\d+) goes on", self._vm.log)
                self._pids[name] = int(successors[-1]) if successors else pid
                time.sleep(0.05)
            assert f"{name} (pid {pid}): killed by SIGKILL" in self._vm.log


def is_whole(found: str, wanted: str, repeats_left: int) -> bool:
    """Return whether ``found`` is ``wanted``, but for a few pieces that come twice in a row."""
    if found == wanted:
        return True
    pairs = zip(found, wanted, strict=False)
    same = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))
    return repeats_left > 0 and any(
        found[end - size : end] == found[end : end + size]
        and is_whole(found[:end] + found[end + size :], wanted, repeats_left - 1)
        for end in range(max(0, same - PIECE_CHARS), same + 1)
        for size in range(1, min(PIECE_CHARS, end) + 1)
    )


def balloon(lab: Lab, vm: Vm, *words: str) -> None:
    result = lab.host.run(["crosvm", "balloon", "--wait", *words, vm.socket], timeout=GUEST_SECONDS)
    assert (result.status, result.stderr) == (0, "")


def statistics(lab: Lab, vm: Vm) -> tuple[int, int, int]:
    """Return the balloon's target and size, and the guest's free memory, all in MiB."""
    result = lab.host.run(["crosvm", "balloon_stats", vm.socket], timeout=GUEST_SECONDS)
    assert (result.status, result.stderr) == (0, "")
    told = json.loads(result.stdout)["BalloonStats"]
    numbers = (told["balloon_target"], told["balloon_actual"], told["stats"]["free_memory"])
    target, actual, free = (number // MIB for number in numbers)
    return target, actual, free


def peer(lab: Lab, stack: ExitStack, where: str, *words: str) -> Command:
    """Start the host's end of connections and return when it listens."""
    command = lab.host.start(["python3", "-I", PEER, where, *words], user=lab.user)
    stack.enter_context(command)
    command.wait_for("listening")
    return command


def crowd(lab: Lab, where: str) -> None:
    """Let some programs of the host speak to the guest at once."""
    words = ["python3", "-I", PEER, where, "crowd", "80", "5"]
    result = lab.host.run(words, user=lab.user, timeout=GUEST_SECONDS)
    assert result.status == 0, result


def check_vsock(lab: Lab, facts: dict[str, str], saver: Command) -> None:
    """Check that the old connection ended with an error, and what went through a new one."""
    assert re.match(r"1 .* read.*(reset|not connected)", facts["old"])
    assert saver.wait(GUEST_SECONDS) == 0
    assert lab.shell("sha256sum <saved").split()[0] == facts["sum"].split()[0]
    assert facts["errors"] == ""


def test_guest_goes_on_when_its_devices_are_killed(tester_lab: Lab) -> None:
    lab = tester_lab
    lab.shell("mkfifo fifo")
    where = f"unix:{lab.folder}/v"
    data = f"type=file,path={lab.folder}/agent,num=2,name=org.agent,input={lab.folder}/fifo"
    options = ["-m", "256", "--balloon", "32m", "--vsock", f"cid={CID},socket={lab.folder}/v"]
    for port in (f"type=file,path={lab.folder}/hvc0,num=1", data):
        options += ["--serial", f"{CONSOLE},{port}"]
    options += ["--serial", "type=stdout,console,stdin"]
    with ExitStack() as stack:
        kept = peer(lab, stack, where, "keep", "6001", "1")
        saver = peer(lab, stack, where, "save", "6002", f"{lab.folder}/saved")
        words = ["sh", "-c", f"cat >{lab.folder}/fifo"]
        writer = stack.enter_context(lab.host.start(words, user=lab.user))
        vm = stack.enter_context(lab.start(*options, script=USE_DEVICES))
        writer.send("before\n")
        vm.wait_for("@early=before")
        kept.wait_for("connected", GUEST_SECONDS)
        balloon(lab, vm, "48m")
        killer = Killer(lab, vm)
        killer.kill("console", "rng", "vsock", "balloon")
        target, actual, free = statistics(lab, vm)
        assert (target, actual) == (48, 48)
        balloon(lab, vm, "112m")
        killer.kill("console", "rng", "balloon")
        assert statistics(lab, vm)[:2] == (112, 112)
        assert free - statistics(lab, vm)[2] > 40
        writer.send("after\n")
        crowd(lab, where)
        kept.wait_for("ended", GUEST_SECONDS)
        vm.command.send("on\n")
        vm.wait_for("@done=yes")
        vm.wait_for("@late=after")
        vm.wait_for("@lines=")
        vm.wait_for("@random=")
        vm.command.send("end\n")
        facts = vm.finish()
        check_vsock(lab, facts, saver)
    assert facts["random"] == f"{RANDOM_BYTES}"
    assert lab.shell("cat agent") == "bye\n"
    printed = lab.shell("cat hvc0").replace("\r", "")
    assert is_whole(printed, "".join(f"line {n}\n" for n in range(LINES)), 2), printed


def test_vsock_of_the_kernel_has_new_connections(lab: Lab) -> None:
    where = f"vsock:{CID}"
    with ExitStack() as stack:
        kept = peer(lab, stack, where, "keep", "6001", "1")
        saver = peer(lab, stack, where, "save", "6002", f"{lab.folder}/saved")
        vm = stack.enter_context(lab.start("--vsock", f"{CID}", script=USE_VSOCK))
        kept.wait_for("connected", GUEST_SECONDS)
        killer = Killer(lab, vm)
        for _ in range(2):
            killer.kill("vsock")
        crowd(lab, where)
        kept.wait_for("ended", GUEST_SECONDS)
        vm.command.send("on\n")
        vm.wait_for("@done=yes")
        vm.command.send("end\n")
        facts = vm.finish()
        check_vsock(lab, facts, saver)
