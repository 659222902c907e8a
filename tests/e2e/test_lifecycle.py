# SPDX-License-Identifier: BSD-3-Clause
"""Real guests under load are ended in every way, and nothing of them is left."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import pytest

from tests.e2e.support import TESTER

if TYPE_CHECKING:
    from tests.e2e.support import Lab, ProcessFacts, Vm

# The guest writes to its disk, reads random numbers and keeps both processors busy, for ever.
LOAD: Final = """
dd if=/dev/zero of=/dev/vdb bs=64k count=16 2>/dev/null
(while :; do dd if=/dev/zero of=/dev/vdb bs=64k oflag=direct 2>/dev/null; done) &
(while :; do head -c 512 /dev/hwrng >/dev/null; done) &
(while :; do :; done) &
fact loaded true
"""

# Try to lock a file as a VM does, with an open file description lock (fcntl(2)).
LOCK: Final = """
import fcntl, struct, sys
with open(sys.argv[1], "r+b") as file:
    fcntl.fcntl(file, 37, struct.pack("hhxxxxqqixxxx", fcntl.F_WRLCK, 0, 0, 0, 0))
"""


def is_free(lab: Lab, disk: str) -> bool:
    return lab.host.run(["python3", "-I", "-c", LOCK, disk]).status == 0


def start_loaded(lab: Lab, disk: str, *options: str) -> Vm:
    return lab.start("--rwdisk", disk, "-c", "2", *options, script=LOAD, end="stay")


def nothing_is_left(lab: Lab, processes: list[ProcessFacts]) -> bool:
    """Wait a while until every process has gone, and look for sockets."""
    folders = " ".join(f"/proc/{process['pid']}" for process in processes)
    wait = f"for _ in $(seq 100); do ls -d {folders} 2>/dev/null || exit 0; sleep 0.1; done; exit 1"
    gone = lab.host.run(["sh", "-c", wait]).status == 0
    return gone and lab.shell("ls *.sock 2>/dev/null || true") == ""


def pid_of(processes: list[ProcessFacts], name: str) -> int:
    (pid,) = (process["pid"] for process in processes if process["name"] == name)
    return pid


# Every signal and every process once, and both users; who is signalled or killed ends for either.
@pytest.mark.parametrize(("number", "user"), [("TERM", "root"), ("INT", TESTER), ("HUP", "root")])
def test_signal_ends_a_busy_guest_in_order(user_lab: Lab, number: str) -> None:
    disk = user_lab.disk("data.img", 1)
    with start_loaded(user_lab, disk) as vm:
        vm.wait_ready()
        processes = vm.processes()
        assert not is_free(user_lab, disk)
        user_lab.shell(f"kill -{number} {vm.pid}")
        assert vm.wait() == 0
        assert f"ended by SIG{number}" in vm.log
        assert nothing_is_left(user_lab, processes)
        assert is_free(user_lab, disk)


@pytest.mark.parametrize(
    ("name", "words", "user"),
    [
        ("crosvm-warden", "warden (pid {pid}): ended, and its devices with it", TESTER),
        ("block:1", "block:1 (pid {pid}): killed by SIGKILL", "root"),
        ("rng", "rng (pid {pid}): killed by SIGKILL", TESTER),
    ],
)
def test_killed_process_ends_a_busy_guest_as_a_crash(user_lab: Lab, name: str, words: str) -> None:
    disk = user_lab.disk("data.img", 1)
    with start_loaded(user_lab, disk, "--device-restart=never") as vm:
        vm.wait_ready()
        processes = vm.processes()
        pid = pid_of(processes, name)
        user_lab.host.shell(f"kill -KILL {pid}")
        assert vm.wait() == 33
        assert words.format(pid=pid) in vm.log
        assert nothing_is_left(user_lab, processes)
        assert is_free(user_lab, disk)


def test_killed_vmm_takes_everything_along(any_lab: Lab) -> None:
    disk = any_lab.disk("data.img", 1)
    with start_loaded(any_lab, disk) as vm:
        vm.wait_ready()
        processes = vm.processes()
        any_lab.shell(f"kill -KILL {vm.pid}")
        assert vm.wait() == 128 + 9
        assert nothing_is_left(any_lab, processes)
        assert is_free(any_lab, disk)


def test_hostile_clients_of_the_control_socket_do_not_disturb_a_busy_guest(lab: Lab) -> None:
    disk = lab.disk("data.img", 1)
    hostile = """
import os, socket, sys
for payload in (b"garbage", b"\\x92\\x01", b"", os.urandom(60_000), b"\\x91\\x40"):
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as client:
        client.settimeout(60)
        client.connect(sys.argv[1])
        client.send(payload)
        client.recv(4096)
silent = [socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) for _ in range(20)]
for client in silent:
    client.connect(sys.argv[1])
"""
    with start_loaded(lab, disk) as vm:
        vm.wait_ready()
        attacked = lab.host.run(["python3", "-I", "-c", hostile, vm.socket])
        assert attacked.status == 0, attacked.stderr
        for verb in ("suspend", "resume", "stop"):
            assert vm.control(verb).status == 0
        assert vm.wait() == 0
        assert "Traceback" not in vm.log
