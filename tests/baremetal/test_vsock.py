# SPDX-License-Identifier: BSD-3-Clause
"""vsock sockets on the host, from the first process to the last; the guest has no driver."""

from __future__ import annotations

import os
import signal
import socket
from pathlib import Path

import pytest

from crosvm_py.exit_status import VmExit
from tests.baremetal.vmm import Vmm, eventually
from tests.guests.baremetal.build import build_guest

pytestmark = [pytest.mark.kvm, pytest.mark.slow]

NAMES = ["v", "v.seqpacket"]


@pytest.fixture(scope="session")
def echo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_guest("echo", tmp_path_factory.mktemp("vsock"))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "sockets"
    folder.mkdir()
    return folder


def options(echo: Path, folder: Path, *more: str) -> list[str | Path]:
    return ["-m", "16", *more, "--vsock", f"cid=3,socket={folder}/v", echo]


def turned_away(path: Path, kind: int) -> bool:
    """Ask for a port of a guest that has no driver; return whether the device closed."""
    with socket.socket(socket.AF_UNIX, kind) as sock:
        sock.connect(str(path))
        sock.sendall(b"CONNECT 80\n")
        return sock.recv(100) == b""


def is_confined(pid: int | None) -> bool:
    return pid is not None and "Seccomp_filters:\t2" in Path(f"/proc/{pid}/status").read_text()


@pytest.mark.parametrize("sandbox", [(), ("--disable-sandbox",)], ids=["jailed", "open"])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_sockets_answer_while_the_vm_runs_and_go_away_with_it(
    echo: Path, folder: Path, number: int, sandbox: tuple[str, ...]
) -> None:
    with Vmm(options(echo, folder, *sandbox)) as vmm:
        vmm.wait_for(b"echo")
        # The VM does not wait until the broker, which only the device talks to, has its name.
        assert eventually(
            lambda: sorted(vmm.processes().devices) == ["rng", "vsock", "vsock-broker"]
        )
        assert sorted(entry.name for entry in folder.iterdir()) == NAMES
        for _ in range(3):
            assert turned_away(folder / "v", socket.SOCK_STREAM)
            assert turned_away(folder / "v.seqpacket", socket.SOCK_SEQPACKET)
        vmm.signal(number)
        assert vmm.wait() == (VmExit.STOPPED if number == signal.SIGTERM else -number)
        assert vmm.nothing_is_left()
        assert "ERROR" not in vmm.log()
    assert list(folder.iterdir()) == []


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may look into what is not dumpable")
def test_device_sees_nothing_and_the_broker_the_directory(echo: Path, folder: Path) -> None:
    (folder.parent / "secret").write_text("outside")
    with Vmm(options(echo, folder, "-s", f"{folder}/control")) as vmm:
        vmm.wait_for(b"echo")
        assert eventually(lambda: is_confined(vmm.processes().devices.get("vsock-broker")))
        devices = vmm.processes().devices
        assert os.listdir(f"/proc/{devices['vsock']}/root") == []
        assert sorted(os.listdir(f"/proc/{devices['vsock-broker']}/root")) == ["control", *NAMES]
        for pid in devices.values():
            status = Path(f"/proc/{pid}/status").read_text()
            assert "CapEff:\t0000000000000000" in status
            assert "Seccomp:\t2" in status
        capabilities = Path(f"/proc/{vmm.processes().warden}/status").read_text()
    setfcap = 1 << 31
    assert not int(capabilities.split("CapEff:\t")[1].split()[0], 16) & setfcap


def test_path_may_have_any_bytes_and_a_mount_below_its_directory(echo: Path) -> None:
    path = os.fsdecode(b"/dev/crosvm-test-%d\xff" % os.getpid())
    if not os.access("/dev", os.W_OK):
        pytest.skip("only root may write to /dev, which has mounts below it")
    with Vmm(["-m", "16", "--vsock", f"cid=3,socket={path}", echo]) as vmm:
        vmm.wait_for(b"echo")
        assert turned_away(Path(path), socket.SOCK_STREAM)
        vmm.signal(signal.SIGTERM)
        assert vmm.wait() == VmExit.STOPPED
        assert "ERROR" not in vmm.log()
    assert not os.path.lexists(path)


def test_second_vm_does_not_take_the_socket_of_the_first(echo: Path, folder: Path) -> None:
    with Vmm(options(echo, folder)) as first:
        first.wait_for(b"echo")
        with Vmm(options(echo, folder)) as second:
            assert second.wait() == VmExit.ERROR
            assert "in use, another VM listens there" in second.log()
        assert turned_away(folder / "v", socket.SOCK_STREAM)


@pytest.mark.skipif(os.path.exists("/dev/vhost-vsock"), reason="the kernel has vsock here")
def test_without_the_kernels_device_there_is_a_way_told(echo: Path) -> None:
    with Vmm(["--cid", "3", echo]) as vmm:
        assert vmm.wait() == VmExit.ERROR
        assert "no /dev/vhost-vsock; load the module (modprobe vhost_vsock)" in vmm.log()
