# SPDX-License-Identifier: BSD-3-Clause
"""A running guest by Cloud Hypervisor's REST API, beside the control socket."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, cast

import pytest

from crosvm_py.exit_status import VmExit
from tests.baremetal.vmm import ROOT, Vmm, crosvm, eventually
from tests.crosvm_py.api.rig import Answer, read_answer, request
from tests.guests.baremetal.build import build_guest

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = [pytest.mark.kvm, pytest.mark.slow]


@pytest.fixture(scope="module")
def echo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_guest("echo", tmp_path_factory.mktemp("api"))


@pytest.fixture
def vmm(echo: Path, tmp_path: Path) -> Iterator[Vmm]:
    sockets: list[str | Path] = ["-s", tmp_path / "sock", "--api-socket", tmp_path / "api"]
    with Vmm(["-m", "16", "--balloon", "0", *sockets, echo]) as vmm:
        vmm.wait_for(b"echo")
        yield vmm


def connect(path: Path) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX)
    sock.settimeout(30)
    sock.connect(str(path))
    return sock


def call(path: Path, method: str, name: str, body: bytes = b"") -> Answer:
    with connect(path) as sock:
        sock.send(request(method, name, body))
        return read_answer(sock)


def state_of(path: Path) -> object:
    return cast("dict[str, object]", call(path, "GET", "vm.info").json())["state"]


def assert_echoes(vmm: Vmm, key: bytes) -> None:
    vmm.type(key)
    vmm.wait_for(b"<%02x>" % key[0])


def test_guest_is_paused_and_goes_on_as_both_sockets_see_it(vmm: Vmm, tmp_path: Path) -> None:
    api = tmp_path / "api"
    assert call(api, "PUT", "vm.pause").status == 204
    assert call(api, "PUT", "vm.pause").status == 500
    assert state_of(api) == "Paused"
    vmm.type(b"a")
    assert crosvm("resume", tmp_path / "sock").returncode == 0
    assert state_of(api) == "Running"
    vmm.wait_for(b"<61>")
    assert call(api, "PUT", "vm.resume").status == 500
    (tmp_path / "disk").write_bytes(bytes(4096))
    disk = b'{"path":"%s","id":"data"}' % os.fsencode(tmp_path / "disk")
    assert call(api, "PUT", "vm.add-disk", disk).body == b'{"id":"data","bdf":"0000:00:03.0"}'
    counters = cast("dict[str, dict[str, int]]", call(api, "GET", "vm.counters").json())
    assert counters.keys() == {"__balloon", "__rng", "data"}
    ping = cast("dict[str, object]", call(api, "GET", "vmm.ping").json())
    assert ping["pid"] == vmm.process.pid
    assert call(api, "PUT", "vmm.shutdown").status == 200
    assert vmm.wait() == VmExit.STOPPED
    assert not api.exists()


def test_api_is_served_again_when_its_process_was_killed(vmm: Vmm, tmp_path: Path) -> None:
    api = tmp_path / "api"
    assert call(api, "PUT", "vm.resize", b'{"desired_balloon":4194304}').status == 204
    _, control = vmm.processes().control
    with connect(api) as sock:
        sock.send(request("GET", "vmm.ping"))
        assert read_answer(sock).status == 200
        os.kill(control, signal.SIGKILL)
        assert sock.recv(1) == b""
    answer = call(api, "GET", "vm.info")
    found = cast("dict[str, dict[str, dict[str, int]]]", answer.json())
    assert found["config"]["balloon"]["size"] == 4 << 20
    assert_echoes(vmm, b"a")
    vmm.signal(signal.SIGTERM)
    assert vmm.wait() == VmExit.STOPPED
    assert vmm.nothing_is_left()
    assert "control process: killed by signal 9" in vmm.log()


def test_socket_in_use_is_refused_and_stays(vmm: Vmm, echo: Path, tmp_path: Path) -> None:
    api = tmp_path / "api"
    refused = crosvm("run", "--api-socket", api, echo)
    assert refused.returncode == 1
    assert f"--api-socket: {api}: in use, another VM has locked it" in refused.stderr
    assert call(api, "GET", "vmm.ping").status == 200
    vmm.process.kill()
    vmm.wait()
    with Vmm(["-m", "16", f"--api-socket=path={api}", echo]) as after:
        after.wait_for(b"echo")
        assert call(api, "GET", "vmm.ping").status == 200
    assert eventually(lambda: not api.exists())


def test_inherited_socket_is_served_and_stays(echo: Path, tmp_path: Path) -> None:
    api = tmp_path / "api"
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(api))
        listening.listen()
        words: list[str | Path] = ["-m", "16", f"--api-socket=fd={listening.fileno()}", echo]
        with Vmm(words, fds=[listening.fileno()]) as vmm:
            assert call(api, "GET", "vmm.ping").status == 200
            vmm.signal(signal.SIGTERM)
            assert vmm.wait() == VmExit.STOPPED
    assert api.exists()


@pytest.mark.parametrize("word", ["fd=0", "fd=x", "fd=999999", "path=", "fd=5"])
def test_socket_that_cannot_be_is_refused(echo: Path, word: str) -> None:
    refused = crosvm("run", f"--api-socket={word}", echo)
    assert refused.returncode in (1, VmExit.USAGE)
    assert "--api-socket" in refused.stderr


def test_missing_packages_are_named(echo: Path, tmp_path: Path) -> None:
    code = (
        "import sys; from sys_util import modules; modules.is_installed = lambda _name: False;"
        "from crosvm_py.__main__ import main; sys.exit(main())"
    )
    words = ["run", "--api-socket", str(tmp_path / "api"), str(echo)]
    run = subprocess.run(
        [sys.executable, "-c", code, *words],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert run.returncode == 1
    assert "--api-socket needs httptools and msgspec" in run.stderr
