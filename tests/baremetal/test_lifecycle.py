# SPDX-License-Identifier: BSD-3-Clause
"""Every way in which a VM ends: what status, what words, and that nothing is left behind."""

from __future__ import annotations

import os
import re
import signal
import socket
from typing import TYPE_CHECKING

import pytest

from crosvm_py.exit_status import VmExit
from crosvm_py.requests import catalogue, life, protocol
from sys_util import wire
from tests.baremetal.vmm import PATIENCE_SECONDS, ROOT, Vmm, crosvm, eventually
from tests.guests.baremetal.build import build_guest
from tests.support.block_driver import is_free

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = [pytest.mark.kvm, pytest.mark.slow]


@pytest.fixture(scope="session")
def echo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_guest("echo", tmp_path_factory.mktemp("lifecycle"))


@pytest.fixture
def disk(tmp_path: Path) -> Path:
    path = tmp_path / "disk.img"
    path.write_bytes(bytes(8192))
    return path


@pytest.fixture
def control(tmp_path: Path) -> Path:
    return tmp_path / "vm.sock"


def options(echo: Path, disk: Path, control: Path, *more: str) -> list[str | Path]:
    return ["-m", "16", *more, "--rwdisk", disk, "-s", control, echo]


def assert_alive(vmm: Vmm, key: bytes) -> None:
    """Have the guest answer a key that it has not been sent before."""
    vmm.type(key)
    vmm.wait_for(b"<%02x>" % key[0])


@pytest.mark.parametrize("sandbox", [(), ("--disable-sandbox",)], ids=["jailed", "open"])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_signal_ends_the_vm_in_order(
    echo: Path, disk: Path, control: Path, number: int, sandbox: tuple[str, ...]
) -> None:
    with Vmm(options(echo, disk, control, *sandbox)) as vmm:
        vmm.wait_for(b"echo")
        assert sorted(vmm.processes().devices) == ["block:0", "rng"]
        assert not is_free(disk)
        vmm.signal(number)
        assert vmm.wait() == VmExit.STOPPED
        assert vmm.nothing_is_left()
        assert f"ended by {signal.Signals(number).name}" in vmm.log()
    assert not control.exists()
    assert is_free(disk)


def test_signal_to_the_whole_group_ends_the_vm_in_order(
    echo: Path, disk: Path, control: Path
) -> None:
    with Vmm(options(echo, disk, control), terminal=True) as vmm:
        vmm.wait_for(b"echo")
        vmm.processes()
        os.killpg(vmm.process.pid, signal.SIGTERM)
        assert vmm.wait() == VmExit.STOPPED
        assert vmm.nothing_is_left()
        assert "ended by SIGTERM" in vmm.log()
    assert not control.exists()


def test_signal_while_it_starts_leaves_nothing(echo: Path, disk: Path, control: Path) -> None:
    """Whatever the moment: the status differs, what is left does not."""
    with Vmm(options(echo, disk, control)) as vmm:
        assert eventually(control.exists)
        vmm.signal(signal.SIGTERM)
        assert vmm.wait() in (VmExit.STOPPED, -signal.SIGTERM)
        assert eventually(lambda: is_free(disk))  # the warden tidies up, in its own time
    assert eventually(lambda: not control.exists())


@pytest.mark.parametrize("sandbox", [(), ("--disable-sandbox",)], ids=["jailed", "open"])
def test_killed_vmm_leaves_nothing(
    echo: Path, disk: Path, control: Path, sandbox: tuple[str, ...]
) -> None:
    with Vmm(options(echo, disk, control, *sandbox)) as vmm:
        vmm.wait_for(b"echo")
        vmm.processes()
        vmm.signal(signal.SIGKILL)
        assert vmm.wait() == -signal.SIGKILL
        assert vmm.nothing_is_left()
        assert "ERROR" not in vmm.log()
    assert not control.exists()
    assert is_free(disk)


@pytest.mark.parametrize("sandbox", [(), ("--disable-sandbox",)], ids=["jailed", "open"])
def test_killed_warden_ends_the_vm_as_a_crash(
    echo: Path, disk: Path, control: Path, sandbox: tuple[str, ...]
) -> None:
    with Vmm(options(echo, disk, control, *sandbox)) as vmm:
        vmm.wait_for(b"echo")
        warden = vmm.processes().warden
        os.kill(warden, signal.SIGKILL)
        assert vmm.wait() == VmExit.CRASH
        assert vmm.nothing_is_left()
        assert f"warden (pid {warden}): ended, and its devices with it" in vmm.log()
    assert not control.exists()
    assert is_free(disk)


@pytest.mark.parametrize("sandbox", [(), ("--disable-sandbox",)], ids=["jailed", "open"])
@pytest.mark.parametrize("name", ["block:0", "rng"])
def test_killed_device_ends_the_vm_as_a_crash_and_is_named(
    echo: Path, disk: Path, control: Path, name: str, sandbox: tuple[str, ...]
) -> None:
    with Vmm(options(echo, disk, control, "--device-restart=never", *sandbox)) as vmm:
        vmm.wait_for(b"echo")
        pid = vmm.processes().devices[name]
        os.kill(pid, signal.SIGKILL)
        assert vmm.wait() == VmExit.CRASH
        assert vmm.nothing_is_left()
        assert f"{name} (pid {pid}): killed by SIGKILL" in vmm.log()
    assert not control.exists()
    assert is_free(disk)


@pytest.mark.parametrize(
    ("policy", "call", "words", "status"),
    [
        pytest.param(
            "block_device",
            "preadv",
            r"ERROR crosvm.vm\] block:0 \(pid \d+\): killed by seccomp: preadv2? \(\d+\), "
            "policy block_device$",
            VmExit.CRASH,
            id="device",
        ),
        pytest.param(
            "vcpu",
            "ioctl",
            r"ERROR crosvm.warden\] vmm: killed by seccomp: ioctl \(16\), policy vcpu$",
            VmExit.CRASH,
            id="vmm",
        ),
    ],
)
def test_denied_call_ends_the_vm_and_is_named(
    tmp_path: Path, disk: Path, control: Path, policy: str, call: str, words: str, status: int
) -> None:
    for source in (ROOT / "seccomp" / "x86_64").glob("*.policy"):
        text = source.read_text()
        if source.stem == policy:
            text = without(text, call)
        (tmp_path / source.name).write_text(text)
    guest = build_guest("pci_block", tmp_path)
    more = ("--device-restart=never", "--seccomp-policy-dir", str(tmp_path))
    with Vmm(options(guest, disk, control, *more)) as vmm:
        assert vmm.wait() == status
        # The warden tells of the vmm's end after it.
        assert eventually(lambda: bool(re.search(words, vmm.log(), re.MULTILINE))), vmm.log()
    assert eventually(lambda: is_free(disk))
    assert eventually(lambda: not control.exists())


def without(policy: str, call: str) -> str:
    """Return a policy without the rules for calls of that name, continued lines included."""
    rules = re.findall(r"^(?:.*\\\n)*.*\n", policy, re.MULTILINE)
    return "".join(rule for rule in rules if not rule.startswith(call))


def test_stopped_warden_and_devices_do_not_keep_the_vm_from_ending(
    echo: Path, disk: Path, control: Path
) -> None:
    with Vmm(options(echo, disk, control)) as vmm:
        vmm.wait_for(b"echo")
        found = vmm.processes()
        for pid in (found.warden, *found.devices.values()):
            os.kill(pid, signal.SIGSTOP)
        vmm.signal(signal.SIGTERM)
        assert vmm.wait() == VmExit.STOPPED
        assert vmm.nothing_is_left()
        assert f"warden (pid {found.warden}): does not end, killed" in vmm.log()
    assert is_free(disk)


def test_vm_that_was_stopped_and_continued_goes_on(echo: Path, disk: Path, control: Path) -> None:
    with Vmm(options(echo, disk, control)) as vmm:
        vmm.wait_for(b"echo")
        vmm.signal(signal.SIGSTOP)
        vmm.signal(signal.SIGCONT)
        assert_alive(vmm, b"a")
        vmm.type(b"q")
        assert vmm.wait() == VmExit.RESET


# The control socket


def test_stop_ends_the_vm_and_waits_for_it(echo: Path, disk: Path, control: Path) -> None:
    with Vmm(options(echo, disk, control)) as vmm:
        vmm.wait_for(b"echo")
        vmm.processes()
        done = crosvm("stop", control)
        assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
        assert is_free(disk)
        assert not control.exists()
        assert vmm.wait() == VmExit.STOPPED
        assert vmm.nothing_is_left()


def test_suspended_vm_holds_still_and_goes_on(echo: Path, disk: Path, control: Path) -> None:
    with Vmm(options(echo, disk, control)) as vmm:
        vmm.wait_for(b"echo")
        assert crosvm("suspend", control).returncode == 0
        vmm.type(b"a")
        assert crosvm("suspend", control).returncode == 0  # again, which changes nothing
        assert b"<61>" not in vmm.output
        assert crosvm("resume", control).returncode == 0
        vmm.wait_for(b"<61>")
        vmm.type(b"q")
        assert vmm.wait() == VmExit.RESET


def test_suspended_vm_can_be_stopped(echo: Path, disk: Path, control: Path) -> None:
    with Vmm(options(echo, disk, control)) as vmm:
        vmm.wait_for(b"echo")
        vmm.processes()
        assert crosvm("suspend", control).returncode == 0
        assert crosvm("stop", control).returncode == 0
        assert vmm.wait() == VmExit.STOPPED
        assert vmm.nothing_is_left()


def connect(control: Path) -> socket.socket:
    client = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    client.settimeout(PATIENCE_SECONDS)
    client.connect(str(control))
    return client


GARBAGE = {
    "garbage": b"\xc1\xff\x00garbage",
    "half": b"\x92\x01",
    "unknown type": b"\x91\xcc\xfa",
    "answer": wire.encode(protocol.Done()),
    "two in one": wire.encode(life.Suspend()) * 2,
    "fields": b"\x92\x01\x01",
    "oversized": b"\x91" * 60_000,
    "text": b"GET / HTTP/1.1\r\n\r\n",
}


def test_garbage_on_the_control_socket_is_answered_and_the_guest_runs_on(
    echo: Path, disk: Path, control: Path
) -> None:
    with Vmm(options(echo, disk, control)) as vmm:
        vmm.wait_for(b"echo")
        for number, payload in enumerate(GARBAGE.values()):
            with connect(control) as client:
                client.send(payload)
                answer = client.recv(4096)
                assert isinstance(catalogue.RESPONSES.decode(answer), protocol.Failed)
                assert client.recv(4096) == b""
            assert_alive(vmm, b"%c" % (ord("A") + number))
        vmm.type(b"q")
        assert vmm.wait() == VmExit.RESET
        assert "Traceback" not in vmm.log()


def test_silent_and_many_clients_do_not_keep_others_out_for_long(
    echo: Path, disk: Path, control: Path
) -> None:
    with Vmm(options(echo, disk, control)) as vmm:
        vmm.wait_for(b"echo")
        silent = [connect(control) for _ in range(20)]
        assert crosvm("suspend", control).returncode == 0
        assert crosvm("resume", control).returncode == 0
        assert_alive(vmm, b"a")
        for client in silent:
            client.close()
        vmm.type(b"q")
        assert vmm.wait() == VmExit.RESET


def test_client_that_does_not_read_and_descriptors_do_no_harm(
    echo: Path, disk: Path, control: Path
) -> None:
    with Vmm(options(echo, disk, control)) as vmm:
        vmm.wait_for(b"echo")
        assert crosvm("resume", control).returncode == 0  # the control process has started
        own = [vmm.process.pid, *vmm.processes().control]
        before = [len(os.listdir(f"/proc/{pid}/fd")) for pid in own]
        with connect(control) as client:
            socket.send_fds(client, [wire.encode(life.Resume())], [0] * 50)
            client.settimeout(0)
            try:
                for _ in range(10_000):
                    client.send(wire.encode(life.Resume()))
            except (BlockingIOError, BrokenPipeError, ConnectionResetError):
                pass
            assert_alive(vmm, b"a")
        assert crosvm("resume", control).returncode == 0
        assert eventually(lambda: [len(os.listdir(f"/proc/{pid}/fd")) for pid in own] == before)
        vmm.type(b"q")
        assert vmm.wait() == VmExit.RESET


def test_second_vm_gets_neither_disk_nor_socket(echo: Path, disk: Path, control: Path) -> None:
    with Vmm(options(echo, disk, control)) as vmm:
        vmm.wait_for(b"echo")
        other = crosvm("run", "-d", disk, echo)
        assert (other.returncode, "locked by another process" in other.stderr) == (1, True)
        other = crosvm("run", "-s", control, echo)
        assert (other.returncode, "another VM listens there" in other.stderr) == (1, True)
        assert_alive(vmm, b"a")
        vmm.type(b"q")
        assert vmm.wait() == VmExit.RESET
