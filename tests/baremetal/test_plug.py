# SPDX-License-Identifier: BSD-3-Clause
"""Devices that come to a running VM, and what is left of those that cannot: real processes."""

from __future__ import annotations

import os
import signal
import socket
import stat
import subprocess
from collections import Counter
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from crosvm_py.control.socket_client import ControlError, ask
from crosvm_py.exit_status import VmExit
from crosvm_py.kinds.later import LaterCard
from crosvm_py.kinds.order import pack_spec
from crosvm_py.requests.devices import DeviceList, ListDevices
from crosvm_py.requests.plug import Plug, Plugged, Reserve, Unplug
from devices.virtio.block.spec import BlockSpec
from devices.virtio.vsock.common import VsockSpec
from sys_util.wire import encode
from tests.baremetal.vmm import MOULD, Vmm, children, crosvm, eventually, name_of, named_children
from tests.guests.baremetal.build import build_guest

if TYPE_CHECKING:
    from collections.abc import Iterator

    from crosvm_py.requests.protocol import Request

pytestmark = [pytest.mark.kvm, pytest.mark.slow]

TIMES = 100


@pytest.fixture(scope="module")
def echo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_guest("echo", tmp_path_factory.mktemp("plug"))


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "data.img"
    path.write_bytes(bytes(1 << 20))
    return path


@pytest.fixture
def vmm(echo: Path, image: Path, tmp_path: Path) -> Iterator[Vmm]:
    boot: list[str | Path] = [
        "-m",
        "16",
        "-s",
        tmp_path / "sock",
        "--block",
        f"path={image},lock=false",
    ]
    with Vmm([*boot, echo]) as vmm:
        vmm.wait_for(b"echo")
        assert crosvm("devices", tmp_path / "sock").returncode == 0  # it has started
        yield vmm


def plug(tmp_path: Path, path: Path | None = None, **where: str | int | bool) -> str:
    """Plug a disk in; return its name and its address, or why there is none."""
    lock = bool(where.pop("lock", False))
    spec = pack_spec(BlockSpec("", lock=lock, option="plug disk"))
    encoded = os.fsencode(tmp_path / "data.img" if path is None else path)
    fields = (str(where.get("id", "")), where.get("slot"))
    try:
        answer = ask(str(tmp_path / "sock"), Plug("block", spec, encoded, *fields))  # type: ignore[arg-type]  # an int or None
    except ControlError as error:
        return str(error).removeprefix(f"{tmp_path / 'sock'}: ")
    assert isinstance(answer, Plugged)
    return f"{answer.id} {answer.bdf}"


def refusal(tmp_path: Path, request: Request) -> str:
    with pytest.raises(ControlError) as caught:
        ask(str(tmp_path / "sock"), request)
    return str(caught.value)


def pids(tmp_path: Path) -> dict[str, int]:
    answer = ask(str(tmp_path / "sock"), ListDevices())
    assert isinstance(answer, DeviceList)
    return {device.name: device.pid for device in answer.devices}


def pid_of(tmp_path: Path, name: str) -> int:
    return pids(tmp_path)[name]


def names(tmp_path: Path) -> list[str]:
    return list(pids(tmp_path))


def opener_of(vmm: Vmm) -> int:
    keeper, control = vmm.processes().control
    (opener,) = (pid for pid in children(keeper) if pid != control)
    assert name_of(opener) == "crosvm-opener"
    return opener


class Held:
    """What the descriptors of all processes that stay were, at one moment."""

    def __init__(self, vmm: Vmm) -> None:
        warden = vmm.processes().warden
        # A mould that has made a device ends soon; none stays where nothing was killed.
        assert eventually(lambda: MOULD not in dict(named_children(warden)))
        self._pids = (*vmm.processes().all(), opener_of(vmm))
        self._before = self._look()

    def _look(self) -> list[Counter[str]]:
        return [Counter(kinds_of_descriptors(pid)) for pid in self._pids]

    def nothing_is_added(self) -> bool:
        """Wait until no process has more than it had."""
        return eventually(
            lambda: all(now <= then for now, then in zip(self._look(), self._before, strict=True))
        )


def kinds_of_descriptors(pid: int) -> Iterator[str]:
    """Yield what they are, without numbers; some may be closed meanwhile."""
    for entry in Path(f"/proc/{pid}/fd").iterdir():
        with suppress(FileNotFoundError):
            yield os.readlink(entry).partition(":")[0]


def test_disks_are_plugged_into_the_lowest_free_slots(vmm: Vmm, tmp_path: Path) -> None:
    assert plug(tmp_path) == "block:1 0000:00:03.0"
    assert plug(tmp_path, slot=5, id="data") == "data 0000:00:05.0"
    assert plug(tmp_path) == "block:2 0000:00:04.0"
    assert plug(tmp_path) == "block:3 0000:00:06.0"
    assert names(tmp_path) == ["block:0", "rng", "block:1", "data", "block:2", "block:3"]
    done = crosvm("plug", f"disk={tmp_path / 'data.img'},lock=false,device=x", tmp_path / "sock")
    assert (done.returncode, done.stdout) == (0, "x 0000:00:07.0\n")
    vmm.signal(signal.SIGTERM)
    assert vmm.wait() == VmExit.STOPPED
    assert vmm.nothing_is_left()


@pytest.fixture
def tap() -> Iterator[str]:
    name = f"plug{os.getpid()}"
    for words in (("tuntap", "add", "dev", name, "mode", "tap"), ("link", "set", name, "up")):
        if subprocess.run(["ip", *words], check=False, capture_output=True).returncode:
            pytest.skip("no TAP can be made here")
    yield name
    subprocess.run(["ip", "link", "del", name], check=True)


def plug_card(tmp_path: Path, name: str) -> str:
    card = pack_spec(LaterCard(name))
    try:
        answer = ask(str(tmp_path / "sock"), Plug("net", card, b""))
    except ControlError as error:
        return str(error)
    assert isinstance(answer, Plugged)
    return f"{answer.id} {answer.bdf}"


@pytest.mark.root
def test_card_is_plugged_in_and_refused_cards_leave_nothing(
    vmm: Vmm, tmp_path: Path, tap: str
) -> None:
    done = crosvm("plug", f"net={tap},device=lan", tmp_path / "sock")
    assert (done.returncode, done.stdout) == (0, "lan 0000:00:03.0\n"), done.stderr
    before = Held(vmm)
    for _ in range(TIMES):
        assert "in use by another process" in plug_card(tmp_path, tap)
        assert "there is no TAP nosuch" in plug_card(tmp_path, "nosuch")
    assert before.nothing_is_added()
    assert names(tmp_path) == ["block:0", "rng", "lan"]
    assert crosvm("link", "lan", "down", tmp_path / "sock").returncode == 0


@pytest.mark.root
def test_tap_is_made_with_an_address_where_the_user_may(vmm: Vmm, tmp_path: Path) -> None:
    words = "net=host-ip=10.77.0.1,netmask=255.255.255.0,mtu=1400,mac=52:54:00:77:00:02"
    done = crosvm("plug", words, tmp_path / "sock")
    if "Operation not permitted" in done.stderr:
        pytest.skip("no TAP can be made here")
    assert (done.returncode, done.stdout) == (0, "net:0 0000:00:03.0\n"), done.stderr
    shown = subprocess.run(["ip", "-4", "addr"], check=True, capture_output=True, text=True)
    assert "inet 10.77.0.1/24" in shown.stdout
    name = f"made{os.getpid()}"
    card = pack_spec(LaterCard(name, makes=True))
    ask(str(tmp_path / "sock"), Plug("net", card, b"", "lan"))
    status = Path(f"/proc/{opener_of(vmm)}/status").read_text()
    assert "CapPrm:\t0000000000001000" in status  # CAP_NET_ADMIN
    status = Path(f"/proc/{vmm.processes().control[1]}/status").read_text()
    assert "CapPrm:\t0000000000000000" in status
    vmm.signal(signal.SIGTERM)
    vmm.wait()
    assert not Path(f"/sys/class/net/{name}").exists()


@pytest.mark.usefixtures("vmm")
def test_passt_and_descriptors_by_number_need_another_way(tmp_path: Path) -> None:
    for words, text in (
        ("net=user", "passt cannot be started for a running VM"),
        ("net=tap-fd=7", "come with vm.add-net of the API"),
    ):
        assert text in crosvm("plug", words, tmp_path / "sock").stderr


def plug_vsock(tmp_path: Path, path: Path, cid: int = 5) -> str:
    request = Plug("vsock", pack_spec(VsockSpec(cid)), os.fsencode(path))
    try:
        answer = ask(str(tmp_path / "sock"), request)
    except ControlError as error:
        return str(error)
    assert isinstance(answer, Plugged)
    return f"{answer.id} {answer.bdf}"


def test_vsock_is_plugged_in_once_and_its_sockets_go_with_the_vm(vmm: Vmm, tmp_path: Path) -> None:
    path = tmp_path / "v.sock"
    done = crosvm("plug", f"vsock=5,socket={path},pci-slot=9", tmp_path / "sock")
    assert (done.returncode, done.stdout) == (0, "vsock 0000:00:09.0\n"), done.stderr
    for name in (path, tmp_path / "v.sock.seqpacket"):
        assert stat.S_IMODE(name.stat().st_mode) == 0o1600
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(str(path))  # the device listens
    assert "this VM has a vsock already" in plug_vsock(tmp_path, tmp_path / "w.sock")
    assert not (tmp_path / "w.sock").exists()
    vmm.signal(signal.SIGTERM)
    assert vmm.wait() == VmExit.STOPPED
    assert vmm.nothing_is_left()
    assert not [name for name in os.listdir(tmp_path) if name.startswith("v.sock")]


def test_refused_vsocks_leave_nothing(vmm: Vmm, tmp_path: Path) -> None:
    taken = tmp_path / "taken"
    taken.touch()
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(str(tmp_path / "other.seqpacket"))
    before, files = Held(vmm), sorted(os.listdir(tmp_path))
    for _ in range(TIMES):
        assert "exists; remove it" in plug_vsock(tmp_path, taken)
        assert "exists; remove it" in plug_vsock(tmp_path, tmp_path / "other")
        assert "No such file" in plug_vsock(tmp_path, tmp_path / "missing" / "v.sock")
        assert "is a directory" in plug_vsock(tmp_path, tmp_path)
        assert "cid 2 is reserved" in plug_vsock(tmp_path, tmp_path / "v", cid=2)
    assert before.nothing_is_added()
    assert sorted(os.listdir(tmp_path)) == files
    assert names(tmp_path) == ["block:0", "rng"]
    assert plug_vsock(tmp_path, tmp_path / "v") == "vsock 0000:00:03.0"


@pytest.mark.usefixtures("vmm")
def test_rng_is_plugged_in_with_limits(tmp_path: Path) -> None:
    for words, name in (("rng", "rng:1"), ("rng=ops-size=9,ops-refill-time=10,device=x", "x")):
        done = crosvm("plug", words, tmp_path / "sock")
        assert (done.returncode, done.stdout.split()[0]) == (0, name), done.stderr


def test_all_slots_are_used_and_no_more(vmm: Vmm, tmp_path: Path) -> None:
    for slot in range(3, 32):
        assert plug(tmp_path) == f"block:{slot - 2} 0000:00:{slot:02x}.0"
    assert plug(tmp_path) == "all 31 PCI slots are in use"
    vmm.signal(signal.SIGTERM)
    assert vmm.wait() == VmExit.STOPPED
    assert vmm.nothing_is_left()


def test_refused_devices_leave_nothing_a_hundred_times_each(vmm: Vmm, tmp_path: Path) -> None:
    locked, empty = tmp_path / "locked.img", tmp_path / "empty.img"
    locked.write_bytes(bytes(4096))
    empty.touch()
    assert plug(tmp_path, locked, lock=True, id="first") == "first 0000:00:03.0"
    before = Held(vmm)
    for _ in range(TIMES):
        assert "No such file" in plug(tmp_path, tmp_path / "missing")
        assert "is empty" in plug(tmp_path, empty)
        assert "is a directory" in plug(tmp_path, tmp_path)
        assert "locked by another process" in plug(tmp_path, locked, lock=True)
        assert "has it already" in plug(tmp_path, id="first")
        assert "no id of a device" in plug(tmp_path, id="__x")
        assert "no id of a device" in plug(tmp_path, id="a/b")
        assert "(0 is the bridge)" in plug(tmp_path, slot=0)
        assert "slots for devices are 1..31" in plug(tmp_path, slot=32)
        assert "pci-slot 1: is in use" in plug(tmp_path, slot=1)
        assert "has no device 'none'" in refusal(tmp_path, Unplug("none"))
        assert "cannot be removed" in refusal(tmp_path, Unplug("rng"))
    assert before.nothing_is_added()
    assert plug(tmp_path) == "block:1 0000:00:04.0"
    assert names(tmp_path) == ["block:0", "rng", "first", "block:1"]


def sockets(pid: int) -> set[str]:
    names = (os.readlink(entry) for entry in Path(f"/proc/{pid}/fd").iterdir())
    return {name for name in names if name.startswith("socket:")}


def test_opener_has_files_and_orders_and_nobody_else_has_its_channels(
    vmm: Vmm, tmp_path: Path
) -> None:
    assert plug(tmp_path) == "block:1 0000:00:03.0"
    opener, found = opener_of(vmm), vmm.processes()
    keeper, control = found.control
    (orders,) = sockets(opener) & sockets(keeper)
    for pid in (found.vmm, control, found.forge, found.warden, *found.devices.values()):
        assert not sockets(pid) & sockets(opener)
    assert orders not in sockets(found.warden)  # which has the other end
    status = Path(f"/proc/{opener}/status").read_text()
    may_make_taps = "0000000000001000" if os.geteuid() == 0 else "0000000000000000"
    for line in ("Seccomp:\t2", f"CapEff:\t{may_make_taps}", "NoNewPrivs:\t1"):
        assert line in status
    assert "crosvm_guest" not in Path(f"/proc/{opener}/maps").read_text()
    links = [os.readlink(entry) for entry in Path(f"/proc/{opener}/fd").iterdir()]
    assert not [link for link in links if "kvm" in link or "memfd" in link or ".img" in link]


def test_client_may_not_ask_what_the_control_process_asks(vmm: Vmm, tmp_path: Path) -> None:
    assert "unknown type" in refusal(tmp_path, Reserve("block", "", None))
    assert vmm.processes().control


def test_guest_that_hears_nothing_keeps_its_device(vmm: Vmm, tmp_path: Path) -> None:
    assert plug(tmp_path, id="data") == "data 0000:00:03.0"
    for name in ("data", "block:0"):
        assert crosvm("unplug", name, tmp_path / "sock").returncode == 0
        for _ in range(TIMES):
            assert "is being removed already" in refusal(tmp_path, Unplug(name))
    assert names(tmp_path) == ["block:0", "rng", "data"]
    vmm.type(b"a")
    vmm.wait_for(b"<61>")


@pytest.mark.parametrize("victim", ["control", "opener"])
def test_plug_goes_on_when_its_processes_were_killed(vmm: Vmm, tmp_path: Path, victim: str) -> None:
    for at in range(3):
        pid = opener_of(vmm) if victim == "opener" else vmm.processes().control[1]
        os.kill(pid, signal.SIGKILL)
        assert eventually(lambda pid=pid: not Path(f"/proc/{pid}").exists())  # type: ignore[misc]  # a default
        assert crosvm("devices", tmp_path / "sock").returncode == 0
        assert plug(tmp_path, id=f"d{at}") == f"d{at} 0000:00:{at + 3:02x}.0"
    vmm.signal(signal.SIGTERM)
    assert vmm.wait() == VmExit.STOPPED
    assert vmm.nothing_is_left()


def test_killed_device_that_was_plugged_in_is_made_again(vmm: Vmm, tmp_path: Path) -> None:
    assert plug(tmp_path, id="data") == "data 0000:00:03.0"
    pid = pid_of(tmp_path, "data")
    os.kill(pid, signal.SIGKILL)
    assert eventually(lambda: pid_of(tmp_path, "data") != pid)
    assert names(tmp_path) == ["block:0", "rng", "data"]


def test_client_that_goes_before_its_answer_leaves_a_device(vmm: Vmm, tmp_path: Path) -> None:
    opener = opener_of(vmm)
    os.kill(opener, signal.SIGSTOP)
    spec = pack_spec(BlockSpec("", lock=False))
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as client:
        client.connect(str(tmp_path / "sock"))
        client.send(encode(Plug("block", spec, os.fsencode(tmp_path / "data.img"), "data")))
        # Others are served meanwhile, and the name is taken.
        assert eventually(lambda: "has it already" in plug(tmp_path, id="data"))
        assert names(tmp_path) == ["block:0", "rng"]
    os.kill(opener, signal.SIGCONT)
    assert eventually(lambda: names(tmp_path) == ["block:0", "rng", "data"])


def test_control_process_that_dies_while_a_disk_is_opened_leaves_no_place(
    vmm: Vmm, tmp_path: Path
) -> None:
    os.kill(opener_of(vmm), signal.SIGSTOP)
    spec = pack_spec(BlockSpec("", lock=False))
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as client:
        client.connect(str(tmp_path / "sock"))
        client.send(encode(Plug("block", spec, os.fsencode(tmp_path / "data.img"), "data")))
        assert eventually(lambda: "has it already" in plug(tmp_path, id="data"))
        os.kill(vmm.processes().control[1], signal.SIGKILL)
        assert client.recv(1) == b""
    assert crosvm("devices", tmp_path / "sock").returncode == 0
    assert plug(tmp_path, id="data") == "data 0000:00:03.0"
    assert names(tmp_path) == ["block:0", "rng", "data"]


def test_vm_without_its_forge_refuses_devices_and_runs_on(vmm: Vmm, tmp_path: Path) -> None:
    forge = vmm.processes().forge
    os.kill(forge, signal.SIGKILL)
    assert eventually(lambda: not Path(f"/proc/{forge}").exists())  # the warden has seen it
    for _ in range(TIMES):
        assert "data: no new process: the forge was killed" in plug(tmp_path, id="data")
    assert "the forge was killed" in plug_vsock(tmp_path, tmp_path / "v")
    assert not (tmp_path / "v").exists()
    assert names(tmp_path) == ["block:0", "rng"]
    vmm.type(b"a")
    vmm.wait_for(b"<61>")
