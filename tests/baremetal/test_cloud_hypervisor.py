# SPDX-License-Identifier: BSD-3-Clause
"""The program cloud-hypervisor with bare-metal guests: created by clients or by options."""

from __future__ import annotations

import json
import os
import select
import signal
import socket
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, cast

import pytest

from tests.baremetal.vmm import PATIENCE_SECONDS, ROOT, children, eventually, has_ended, name_of
from tests.crosvm_py.api.rig import Answer, read_answer, request
from tests.guests.baremetal.build import build_guest

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = [pytest.mark.kvm, pytest.mark.slow]

MEMORY = {"size": 16 << 20}


@pytest.fixture(scope="module")
def echo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_guest("echo", tmp_path_factory.mktemp("ch"))


class Program:
    """cloud-hypervisor, and clients of it."""

    def __init__(self, directory: Path, *words: str) -> None:
        self.path = directory / "api"
        self.events_path = directory / "events"
        command = [sys.executable, "-m", "crosvm_py", "ch", "--api-socket", str(self.path)]
        self.process = subprocess.Popen(
            [*command, "--event-monitor", f"path={self.events_path}", *words],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        assert eventually(self._listens)
        self.output = b""

    def _listens(self) -> bool:
        with socket.socket(socket.AF_UNIX) as sock:
            return sock.connect_ex(str(self.path)) == 0

    def call(self, method: str, name: str, body: object = None) -> Answer:
        data = b"" if body is None else json.dumps(body).encode()
        with socket.socket(socket.AF_UNIX) as sock:
            sock.settimeout(PATIENCE_SECONDS)
            sock.connect(str(self.path))
            sock.send(request(method, name, data))
            return read_answer(sock)

    def put(self, name: str, body: object = None) -> int:
        return self.call("PUT", name, body).status

    def state(self) -> object:
        return cast("dict[str, object]", self.call("GET", "vm.info").json())["state"]

    def wait_for(self, text: bytes) -> None:
        assert self.process.stdout is not None
        fd, deadline = self.process.stdout.fileno(), time.monotonic() + PATIENCE_SECONDS
        while text not in self.output:
            ready, _, _ = select.select([fd], [], [], 0.1)
            self.output += os.read(fd, 65536) if ready else b""
            assert time.monotonic() < deadline, self.output

    def type(self, keys: bytes) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(keys)
        self.process.stdin.flush()

    def threads(self) -> list[str]:
        tasks = Path(f"/proc/{self.process.pid}/task").iterdir()
        return [(task / "comm").read_text().strip() for task in tasks]

    def events(self) -> list[tuple[str, str]]:
        texts = self.events_path.read_text().split("\n\n")
        found = [json.loads(text) for text in texts if text]
        return [(event["source"], event["event"]) for event in found]


@contextmanager
def program(directory: Path, *words: str) -> Iterator[Program]:
    made = Program(directory, *words)
    try:
        yield made
    finally:
        if made.process.poll() is None:
            made.process.kill()
        made.process.communicate()


def config(kernel: Path) -> dict[str, object]:
    return {
        "payload": {"kernel": str(kernel)},
        "memory": MEMORY,
        "cpus": {"boot_vcpus": 2, "max_vcpus": 2},
        "serial": {"mode": "Tty"},
        "console": {"mode": "Off"},
    }


def test_vm_is_created_booted_paused_and_deleted_by_clients(tmp_path: Path, echo: Path) -> None:
    with program(tmp_path) as ch:
        assert ch.call("GET", "vmm.ping").status == 200
        assert ch.call("GET", "vm.info").status == 404
        assert ch.put("vm.create", config(echo)) == 204
        assert ch.state() == "Created"
        assert ch.put("vm.boot") == 204
        ch.wait_for(b"echo")
        assert {"vcpu0", "vcpu1"} <= set(ch.threads())
        assert ch.state() == "Running"
        assert ch.put("vm.boot") == 500
        assert ch.put("vm.pause") == 204
        assert ch.put("vm.pause") == 500
        assert ch.state() == "Paused"
        assert ch.put("vm.resume") == 204
        assert ch.put("vm.resume") == 500
        ch.type(b"a")
        ch.wait_for(b"<61>")
        assert ch.put("vm.delete") == 204
        assert ch.call("GET", "vm.info").status == 404
        assert ch.put("vmm.shutdown") == 200
        assert ch.process.wait(PATIENCE_SECONDS) == 0
        assert not ch.path.exists()
        assert ch.events() == [
            *(("vmm", "starting"), ("vm", "booting"), ("vm", "booted")),
            *(("vm", "pausing"), ("vm", "paused"), ("vm", "resuming"), ("vm", "resumed")),
            *(("vm", "shutdown"), ("vm", "deleted"), ("vmm", "shutdown")),
        ]


def test_boot_that_failed_can_be_tried_again(tmp_path: Path, echo: Path) -> None:
    with program(tmp_path) as ch:
        bad = config(echo) | {"disks": [{"path": "/nonexistent", "id": "data"}]}
        assert ch.put("vm.create", bad) == 204
        before = len(os.listdir(f"/proc/{ch.process.pid}/fd"))
        for _ in range(3):
            answer = ch.call("PUT", "vm.boot")
            assert answer.status == 500
            assert "No such file" in cast("list[str]", answer.json())[-1]
        assert len(os.listdir(f"/proc/{ch.process.pid}/fd")) == before
        assert len(children(ch.process.pid)) == 1  # the keeper
        assert ch.put("vm.remove-device", {"id": "data"}) == 204
        assert ch.put("vm.boot") == 204
        ch.wait_for(b"echo")
        assert ch.put("vm.delete") == 204
        assert ch.put("vm.create", config(echo)) == 204
        assert ch.state() == "Created"
        again = ch.call("PUT", "vm.boot")
        assert again.status == 500
        assert "has run a VM already" in cast("list[str]", again.json())[-1]
        ch.process.send_signal(signal.SIGTERM)
        assert ch.process.wait(PATIENCE_SECONDS) == 0


def test_signal_while_the_vm_boots_ends_the_program(tmp_path: Path, echo: Path) -> None:
    with program(tmp_path) as ch, socket.socket(socket.AF_UNIX) as sock:
        assert ch.put("vm.create", config(echo)) == 204
        sock.connect(str(ch.path))
        sock.send(request("PUT", "vm.boot"))
        assert eventually(lambda: ("vm", "booting") in ch.events())
        ch.process.send_signal(signal.SIGTERM)
        assert ch.process.wait(PATIENCE_SECONDS) == 0
        assert ch.events()[-1] == ("vmm", "shutdown")


def test_options_boot_a_vm_at_once(tmp_path: Path, echo: Path) -> None:
    words = ["--kernel", str(echo), "--memory", "size=16M", "--serial", "tty", "--console", "off"]
    with program(tmp_path, *words) as ch:
        ch.wait_for(b"echo")
        assert eventually(lambda: ch.call("GET", "vm.info").status == 200)
        assert ch.state() == "Running"
        assert ch.put("vmm.shutdown") == 200
        assert ch.process.wait(PATIENCE_SECONDS) == 0


def test_created_vm_outlives_the_control_process(tmp_path: Path, echo: Path) -> None:
    with program(tmp_path) as ch:
        assert ch.put("vm.create", config(echo)) == 204
        (keeper,) = children(ch.process.pid)
        assert name_of(keeper) == "crosvm-keeper"
        (control,) = (pid for pid in children(keeper) if name_of(pid) == "crosvm-control")
        os.kill(control, signal.SIGKILL)
        assert ch.put("vm.boot") == 204
        ch.wait_for(b"echo")
        assert ch.state() == "Running"


def test_nothing_outlives_a_program_that_was_killed(tmp_path: Path, echo: Path) -> None:
    with program(tmp_path) as ch:
        assert ch.put("vm.create", config(echo)) == 204
        assert ch.put("vm.boot") == 204
        ch.wait_for(b"echo")
        others = children(ch.process.pid)
        pidfds = [os.pidfd_open(pid) for pid in [*others, *children(others[0])]]
        ch.process.kill()
        assert all(map(has_ended, pidfds))
        for pidfd in pidfds:
            os.close(pidfd)
        assert eventually(lambda: not ch.path.exists())


def reasons(answer: Answer) -> list[str]:
    return cast("list[str]", answer.json())


def test_disk_is_plugged_into_a_running_vm_and_removed(tmp_path: Path, echo: Path) -> None:
    disk = tmp_path / "disk"
    disk.write_bytes(bytes(1 << 20))
    body = {"path": str(disk), "id": "test0", "image_type": "Raw", "pci_device_id": 9}
    with program(tmp_path) as ch:
        assert ch.put("vm.create", config(echo)) == 204
        assert ch.put("vm.boot") == 204
        ch.wait_for(b"echo")
        added = ch.call("PUT", "vm.add-disk", body)
        assert (added.status, added.body) == (200, b'{"id":"test0","bdf":"0000:00:09.0"}')
        found = cast("dict[str, dict[str, list[dict[str, str]]]]", ch.call("GET", "vm.info").json())
        assert [each["id"] for each in found["config"]["disks"]] == ["test0"]
        tree = cast("dict[str, dict[str, dict[str, str]]]", found)["device_tree"]
        assert tree["_virtio-pci-test0"]["pci_bdf"] == "0000:00:09.0"
        assert tree["_virtio-pci-__rng"]["pci_bdf"] == "0000:00:01.0"
        assert "test0" in cast("dict[str, object]", ch.call("GET", "vm.counters").json())
        assert ch.put("vm.resize-disk", {"id": "test0", "desired_size": 2 << 20}) == 204
        assert disk.stat().st_size == 2 << 20
        assert ch.put("vm.add-disk", body) == 409
        free = {"id": "other", "path": str(tmp_path / "none")}
        assert "No such file" in reasons(ch.call("PUT", "vm.add-disk", free))[-1]
        for slot, text in (
            (188, "Given PCI device ID (188) is out of the supported range of 0..32"),
            (0, "Given PCI device ID (0) is reserved"),
            (9, "Valid PCI device identifier but already used: 9"),
        ):
            refused = ch.call("PUT", "vm.add-disk", free | {"pci_device_id": slot})
            assert text in reasons(refused)
        assert ch.put("vm.remove-device", {"id": "nobody"}) == 404
        assert ch.put("vm.remove-device", {"id": "__rng"}) == 500
        assert ch.put("vm.remove-device", {"id": "test0"}) == 204
        assert ch.put("vm.remove-device", {"id": "test0"}) in (404, 500)
        assert (
            "disks"
            not in cast("dict[str, dict[str, object]]", ch.call("GET", "vm.info").json())["config"]
        )
        assert ch.put("vmm.shutdown") == 200
        assert ch.process.wait(PATIENCE_SECONDS) == 0


@pytest.mark.root
@pytest.mark.skipif(os.geteuid() != 0, reason="makes a TAP")
def test_card_is_plugged_into_a_running_vm(tmp_path: Path, echo: Path) -> None:
    tap = f"ch{os.getpid()}"
    subprocess.run(["ip", "tuntap", "add", "dev", tap, "mode", "tap"], check=True)
    subprocess.run(["ip", "link", "set", tap, "up"], check=True)
    try:
        with program(tmp_path) as ch:
            assert ch.put("vm.create", config(echo)) == 204
            assert ch.put("vm.boot") == 204
            ch.wait_for(b"echo")
            added = ch.call("PUT", "vm.add-net", {"tap": tap, "id": "lan"})
            assert (added.status, added.body) == (200, b'{"id":"lan","bdf":"0000:00:02.0"}')
            assert "lan" in cast("dict[str, object]", ch.call("GET", "vm.counters").json())
            other = {"id": "other", "tap": f"{tap}x"}  # made, and gone with the card's process
            made = ch.call("PUT", "vm.add-net", other)
            assert (made.status, made.body) == (200, b'{"id":"other","bdf":"0000:00:03.0"}')
            assert "in use" in reasons(ch.call("PUT", "vm.add-net", {"tap": tap}))[-1]
            assert ch.put("vm.remove-device", {"id": "lan"}) == 204
    finally:
        subprocess.run(["ip", "link", "del", tap], check=True)


def test_panic_of_the_guest_is_an_event(tmp_path: Path) -> None:
    with program(tmp_path) as ch:
        assert ch.put("vm.create", config(build_guest("panic", tmp_path))) == 204
        assert ch.put("vm.boot") == 204
        assert eventually(lambda: ("guest", "panic") in ch.events())


def test_power_button_ends_guest_and_program(tmp_path: Path) -> None:
    with program(tmp_path) as ch:
        assert ch.put("vm.create", config(build_guest("power_button", tmp_path))) == 204
        assert ch.put("vm.boot") == 204
        ch.wait_for(b"waiting")
        assert ch.put("vm.power-button") == 204
        assert ch.process.wait(PATIENCE_SECONDS) == 0
        assert ch.events()[-3:] == [("vm", "shutdown"), ("vm", "deleted"), ("vmm", "shutdown")]
        assert not ch.path.exists()


def test_program_stays_when_the_guest_has_powered_off(tmp_path: Path) -> None:
    with program(tmp_path, "--no-shutdown") as ch:
        assert ch.put("vm.create", config(build_guest("power_button", tmp_path))) == 204
        assert ch.put("vm.boot") == 204
        ch.wait_for(b"waiting")
        assert ch.put("vm.power-button") == 204
        assert eventually(lambda: ch.state() == "Created")
        assert ch.events()[-1] == ("vm", "shutdown")
        assert ch.call("GET", "vmm.ping").status == 200
        ch.process.send_signal(signal.SIGTERM)
        assert ch.process.wait(PATIENCE_SECONDS) == 0


def test_driver_of_a_device_is_an_event(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.write_bytes(bytes(1 << 20))
    devices = {"disks": [{"path": str(disk), "id": "data", "image_type": "Raw"}]}
    with program(tmp_path) as ch:
        assert ch.put("vm.create", config(build_guest("pci_block", tmp_path)) | devices) == 204
        assert ch.put("vm.boot") == 204
        assert eventually(lambda: ("virtio-device", "activated") in ch.events())
        assert ch.events().index(("vm", "booting")) < ch.events().index(("vm", "booted"))


def ch(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "crosvm_py", "ch", *words],
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=PATIENCE_SECONDS,
        check=False,
    )


def test_version_is_that_of_the_interface() -> None:
    assert ch("--version").stdout.startswith("cloud-hypervisor v51.1.0-crosvm-py-")


@pytest.mark.parametrize(
    ("words", "status", "text"),
    [
        ([], 2, ""),
        (["--nonsense"], 2, "--nonsense"),
        (["--cpus", "boot=1"], 2, "--kernel"),
        (["--seccomp", "true"], 2, "--api-socket"),
        (["--kernel", "/nonexistent"], 1, "  0: open kernel /nonexistent\n  1: No such file"),
        (["--restore", "source_url=file:///x"], 1, "not supported"),
    ],
)
def test_command_line_that_cannot_be_carried_out(words: list[str], status: int, text: str) -> None:
    ended = ch(*words)
    assert ended.returncode == status
    assert text in ended.stderr
