# SPDX-License-Identifier: BSD-3-Clause
"""Devices that clients of the REST API plug into a running VM, some with descriptors."""

from __future__ import annotations

import array
import fcntl
import json
import os
import select
import socket
import stat
from pathlib import Path
from struct import pack
from typing import TYPE_CHECKING, cast

import pytest

from sys_util.tap import IFF_MULTI_QUEUE, IFF_NO_PI, IFF_TAP, IFF_VNET_HDR, TUN_PATH, TUNSETIFF
from tests.baremetal.test_cloud_hypervisor import config, program, reasons
from tests.baremetal.vmm import PATIENCE_SECONDS
from tests.crosvm_py.api.rig import Answer, read_answer, request
from tests.guests.baremetal.build import build_guest

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.baremetal.test_cloud_hypervisor import Program

pytestmark = [pytest.mark.kvm, pytest.mark.slow]


@pytest.fixture(scope="module")
def echo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_guest("echo", tmp_path_factory.mktemp("rest"))


@pytest.fixture
def ch(tmp_path: Path, echo: Path) -> Iterator[Program]:
    """A VM of two segments that runs."""
    with program(tmp_path) as ch:
        wanted = {**config(echo), "platform": {"num_pci_segments": 2}}
        assert ch.put("vm.create", wanted) == 204
        assert ch.put("vm.boot") == 204
        ch.wait_for(b"echo")
        yield ch
        assert ch.put("vmm.shutdown") == 200
        assert ch.process.wait(PATIENCE_SECONDS) == 0


def in_pieces(ch: Program, data: bytes, fds: list[int], size: int) -> Answer:
    """Send a request in pieces of ``size`` bytes; all but the last descriptor go with the first."""
    with socket.socket(socket.AF_UNIX) as sock:
        sock.settimeout(PATIENCE_SECONDS)
        sock.connect(str(ch.path))
        for at in range(0, len(data), size):
            is_last = at + size >= len(data)
            some = [*(fds[:-1] if at == 0 else ()), *(fds[-1:] if is_last else ())]
            rights = array.array("i", some).tobytes()
            ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, rights)] if rights else []
            sock.sendmsg([data[at : at + size]], ancillary)
        return read_answer(sock)


def info(ch: Program) -> dict[str, dict[str, object]]:
    return cast("dict[str, dict[str, object]]", ch.call("GET", "vm.info").json())


@pytest.fixture
def tap() -> Iterator[list[int]]:
    """Two queues of a TAP that goes with them."""
    fds = []
    try:
        for _ in range(2):
            fds.append(os.open(TUN_PATH, os.O_RDWR))
            flags = IFF_TAP | IFF_NO_PI | IFF_VNET_HDR | IFF_MULTI_QUEUE
            name = f"rest{os.getpid()}".encode()
            fcntl.ioctl(fds[-1], TUNSETIFF, pack("16sH22x", name, flags))
    except OSError:
        pytest.skip("no TAP can be made here")
    yield fds
    for fd in fds:
        os.close(fd)


@pytest.mark.root
@pytest.mark.parametrize("size", [1, 256, 65536])
def test_card_comes_with_its_descriptors(ch: Program, tap: list[int], size: int) -> None:
    body = json.dumps({"id": "lan", "num_queues": 4, "fds": [7, 8]}).encode()
    answer = in_pieces(ch, request("PUT", "vm.add-net", body), tap, size)
    assert (answer.status, answer.body) == (200, b'{"id":"lan","bdf":"0000:00:02.0"}'), answer.body
    assert ch.put("vm.remove-device", {"id": "lan"}) == 204
    assert "net" not in info(ch)["config"]


@pytest.mark.root
def test_card_with_the_wrong_descriptors_is_refused(ch: Program, tap: list[int]) -> None:
    null = os.open("/dev/null", os.O_RDONLY)
    for fds, body, text in (
        (tap, {"num_queues": 2}, "num_queues"),
        ([null], {"num_queues": 2}, "is not a TAP"),
        (tap, {"num_queues": 4, "ip": "10.0.0.1", "mask": "255.0.0.0"}, "exclude each other"),
        ([null] * 130, {"num_queues": 260}, "num_queues"),
    ):
        data = request("PUT", "vm.add-net", json.dumps(body).encode())
        answer = in_pieces(ch, data, fds, 1)
        assert answer.status in (400, 500)
        assert text in " ".join(reasons(answer)), reasons(answer)
    os.close(null)
    assert "net" not in info(ch)["config"]


def test_vsock_comes_once(ch: Program, tmp_path: Path) -> None:
    path = tmp_path / "v.sock"
    body = {"cid": 3, "socket": str(path), "pci_segment": 1}
    answer = ch.call("PUT", "vm.add-vsock", body)
    assert (answer.status, answer.body) == (200, b'{"id":"_vsock0","bdf":"0001:00:00.0"}')
    assert stat.S_ISSOCK(path.stat().st_mode)
    for again in (body, {**body, "socket": str(tmp_path / "w")}):
        assert ch.put("vm.add-vsock", again) == 500
    found = info(ch)
    assert cast("dict[str, object]", found["config"]["vsock"])["id"] == "_vsock0"
    assert ch.put("vm.remove-device", {"id": "_vsock0"}) == 204
    assert "vsock" not in info(ch)["config"]
    # The guest has no driver and ejects nothing, so its device is still there.
    assert "has a vsock already" in reasons(ch.call("PUT", "vm.add-vsock", body))[-1]
    for wrong in ({**body, "cid": 2}, {**body, "pci_segment": 2}):
        assert ch.put("vm.add-vsock", wrong) == 400


def test_pseudo_terminals_are_shown_and_lead_to_the_guest(tmp_path: Path, echo: Path) -> None:
    with program(tmp_path) as ch:
        wanted = {**config(echo), "serial": {"mode": "Pty"}, "console": {"mode": "Pty"}}
        assert ch.put("vm.create", wanted) == 204
        assert ch.put("vm.boot") == 204
        found = info(ch)["config"]
        serial, console = (cast("dict[str, str]", found[key]) for key in ("serial", "console"))
        assert serial["file"] != console["file"]
        with open(serial["file"], "r+b", buffering=0) as terminal:
            terminal.write(b"a")
            output = b""
            while b"<61>" not in output:
                assert select.select([terminal], [], [], PATIENCE_SECONDS)[0]
                output += terminal.read(4096)
        assert stat.S_ISCHR(os.stat(console["file"]).st_mode)
        assert ch.put("vmm.shutdown") == 200
        assert ch.process.wait(PATIENCE_SECONDS) == 0


def tap_descriptors(ch: Program) -> int:
    """Return how many descriptors of TAPs the vmm has."""
    entries = Path(f"/proc/{ch.process.pid}/fd").iterdir()
    return sum(os.readlink(entry) == TUN_PATH for entry in entries)


@pytest.mark.root
def test_vmm_keeps_descriptors_of_clients_until_the_boot(
    tmp_path: Path, echo: Path, tap: list[int]
) -> None:
    card = request("PUT", "vm.add-net", b'{"id":"lan","num_queues":4}')
    with program(tmp_path) as ch:
        missing = {**config(echo), "disks": [{"path": str(tmp_path / "disk")}]}
        assert ch.put("vm.create", missing) == 204
        assert in_pieces(ch, card, tap, 1).status == 204
        for _ in range(3):
            assert ch.put("vm.boot") == 500
            assert tap_descriptors(ch) == 2
        (tmp_path / "disk").write_bytes(bytes(4096))
        assert ch.put("vm.boot") == 204
        ch.wait_for(b"echo")
        assert tap_descriptors(ch) == 0
        assert "lan" in cast("dict[str, object]", ch.call("GET", "vm.counters").json())
        assert ch.put("vm.delete") == 204
        assert ch.call("GET", "vmm.ping").status == 200
        assert ch.put("vmm.shutdown") == 200
        assert ch.process.wait(PATIENCE_SECONDS) == 0


@pytest.mark.root
def test_vmm_keeps_no_more_descriptors_than_all_cards_have(
    tmp_path: Path, echo: Path, tap: list[int]
) -> None:
    with program(tmp_path) as ch:
        assert ch.put("vm.create", config(echo)) == 204
        for at in range(8):
            body = b'{"id":"n%d","num_queues":4}' % at
            status = in_pieces(ch, request("PUT", "vm.add-net", body), tap, 1).status
            assert status == 204
        assert tap_descriptors(ch) == 16
        assert ch.put("vm.remove-device", {"id": "n7"}) == 204
        assert tap_descriptors(ch) == 14
        assert ch.put("vm.delete") == 204
        assert tap_descriptors(ch) == 0
        assert ch.put("vmm.shutdown") == 200
        assert ch.process.wait(PATIENCE_SECONDS) == 0


@pytest.mark.root
def test_boot_that_fails_lets_go_of_what_it_has_opened(
    tmp_path: Path, echo: Path, tap: list[int]
) -> None:
    (tmp_path / "disk").write_bytes(bytes(4096))
    folder = tmp_path / "missing"
    wanted = {
        **config(echo),
        "disks": [{"path": str(tmp_path / "disk")}],
        "vsock": {"cid": 3, "socket": str(folder / "v")},
    }
    with program(tmp_path) as ch:
        assert ch.put("vm.create", wanted) == 204
        card = request("PUT", "vm.add-net", b'{"id":"lan","num_queues":4}')
        assert in_pieces(ch, card, tap, 1).status == 204
        for _ in range(3):
            answer = ch.call("PUT", "vm.boot")
            assert answer.status == 500
            assert "No such file" in reasons(answer)[-1]
            assert tap_descriptors(ch) == 2
        folder.mkdir()
        assert ch.put("vm.boot") == 204
        ch.wait_for(b"echo")
        assert ch.put("vmm.shutdown") == 200
        assert ch.process.wait(PATIENCE_SECONDS) == 0
