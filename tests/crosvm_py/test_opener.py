# SPDX-License-Identifier: BSD-3-Clause
"""The opener between a control process and a warden of ours: what it opens, and what it is sent."""

from __future__ import annotations

import os
import select
import signal
import stat
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from crosvm_py.kinds import later
from crosvm_py.kinds.later import LaterCard
from crosvm_py.kinds.order import pack_spec
from crosvm_py.opener import protocol
from crosvm_py.opener.process import MAX_HANDS, start_opener
from crosvm_py.opener.rules import make_rules
from crosvm_py.warden import protocol as warden_protocol
from devices.virtio.block.spec import BlockSpec
from devices.virtio.rng.device import RngSpec
from seccomp import load_policy
from sys_util import landlock, linux
from sys_util.channel import Channel, socket_pair
from sys_util.landlock import LandlockRule
from tests.crosvm_py.device_rig import room_for_what_tests_have

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sys_util.wire import Message

PATIENCE_SECONDS = 60.0


class OpenerRig:
    """The two ends that the opener talks to, and its process."""

    def __init__(self, rules: int = -1) -> None:
        openers, wardens = socket_pair()
        self.warden = Channel(wardens, warden_protocol.ORDERS_CODEC)
        with openers, room_for_what_tests_have():
            before = children()
            policy = load_policy("opener")
            self.sock = start_opener(openers.fileno(), policy, rules=rules, sibling=False)
        (self.pid,) = children() - before
        self.control = Channel(self.sock, protocol.FROM_OPENER_CODEC)

    def close(self) -> None:
        self.control.close()
        self.warden.close()
        os.waitpid(self.pid, 0)

    def open(self, kind: str, spec: bytes, path: Path | None = None) -> None:
        encoded = b"" if path is None else os.fsencode(path)
        self.control.send(protocol.Open(7, "data", kind, spec, encoded, 2))

    def take(self, channel: Channel) -> tuple[Message, list[int]]:
        ready = select.select([channel, self.control], [], [], PATIENCE_SECONDS)[0]
        assert channel in ready, self.control.receive() if ready else "no answer"
        received = channel.receive()
        assert received is not None
        return received

    def wait_until_idle(self, hanging: int = 0) -> None:
        """Wait until the opener has reaped all processes but those that hang."""
        deadline = time.monotonic() + PATIENCE_SECONDS
        while len(children(self.pid)) > hanging:
            assert time.monotonic() < deadline
            time.sleep(0.001)

    def served(self, image: Path) -> bool:
        """Have a disk opened, as soon as there is room for one request more."""
        while True:
            self.open("block", pack_spec(BlockSpec("", lock=False)), image)
            if self.warden in select.select([self.warden, self.control], [], [], 60.0)[0]:
                os.close(self.take(self.warden)[1][0])
                return True
            assert "waits for" in self.refusal()

    def refused(self, image: Path) -> str:
        """Return why a disk is not opened, as soon as there is no room."""
        while True:
            self.open("block", pack_spec(BlockSpec("", lock=False)), image)
            if self.control in select.select([self.warden, self.control], [], [], 60.0)[0]:
                return self.refusal()
            os.close(self.take(self.warden)[1][0])

    def refusal(self) -> str:
        message, _ = self.take(self.control)
        assert isinstance(message, protocol.NotOpened), message
        assert message.place == 7
        return message.reason


def children(pid: int = 0) -> set[int]:
    pid = pid or os.getpid()
    return set(map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split()))


@pytest.fixture
def rig() -> Iterator[OpenerRig]:
    rig = OpenerRig()
    yield rig
    rig.close()


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "data.img"
    path.write_bytes(b"x" * 8192)
    return path


def held(pid: int) -> int:
    return len(list(Path(f"/proc/{pid}/fd").iterdir()))


def test_disk_is_opened_locked_and_ordered(rig: OpenerRig, image: Path) -> None:
    rig.open("block", pack_spec(BlockSpec("")), image)
    order, (fd,) = rig.take(rig.warden)
    assert isinstance(order, warden_protocol.Add)
    facts = (order.place, order.name, order.kind, order.max_file_bytes)
    assert facts == (7, "data", "block", 8192)
    assert os.pread(fd, 3, 0) == b"xxx"
    rig.open("block", pack_spec(BlockSpec("")), image)
    assert "locked by another process" in rig.refusal()
    os.close(fd)


@pytest.fixture(params=["at its start", "by a message"])
def restricted(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[OpenerRig]:
    """Return an opener that may read and write below ``rw``, and read below ``r``."""
    if not landlock.abi_version():
        pytest.skip("no Landlock")
    for name in ("rw", "r", "outside"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "a.img").write_bytes(bytes(4096))
    rules = (LandlockRule(f"{tmp_path}/rw", "rw"), LandlockRule(f"{tmp_path}/r", "r"))
    at_start = request.param == "at its start"
    ruleset = make_rules(rules) if at_start else -1
    rig = OpenerRig(ruleset)
    if at_start:
        os.close(ruleset)
    else:
        rig.control.send(protocol.Restrict(rules))
        assert rig.take(rig.control) == (protocol.Restricted(""), [])
    yield rig
    rig.close()


def test_files_of_the_rules_are_opened(restricted: OpenerRig, tmp_path: Path) -> None:
    for name, read_only in (("rw", False), ("r", True)):
        spec = pack_spec(BlockSpec("", read_only=read_only))
        restricted.open("block", spec, tmp_path / name / "a.img")
        _, (fd,) = restricted.take(restricted.warden)
        os.close(fd)
    restricted.open("rng", pack_spec(RngSpec()))
    order, _ = restricted.take(restricted.warden)
    assert isinstance(order, warden_protocol.Add)


@pytest.mark.parametrize("path", ["outside/a.img", "r/a.img", "rw/../outside/a.img", "rw/link"])
def test_files_of_no_rule_are_refused(restricted: OpenerRig, tmp_path: Path, path: str) -> None:
    (tmp_path / "rw" / "link").symlink_to(tmp_path / "outside" / "a.img")
    restricted.open("block", pack_spec(BlockSpec("")), tmp_path / path)
    reason = restricted.refusal()
    assert "Permission denied (no --landlock-rules lets it be opened)" in reason
    assert str(tmp_path / path) in reason


def test_second_rules_come_on_top(restricted: OpenerRig, tmp_path: Path) -> None:
    restricted.control.send(protocol.Restrict((LandlockRule(str(tmp_path), "rw"),)))
    assert restricted.take(restricted.control) == (protocol.Restricted(""), [])
    restricted.open("block", pack_spec(BlockSpec("")), tmp_path / "outside" / "a.img")
    assert "--landlock-rules" in restricted.refusal()


def test_rule_of_a_missing_path_is_refused_and_nothing_is_restricted(
    rig: OpenerRig, image: Path, tmp_path: Path
) -> None:
    rig.control.send(protocol.Restrict((LandlockRule(f"{tmp_path}/no", "r"),)))
    message, _ = rig.take(rig.control)
    assert isinstance(message, protocol.Restricted)
    assert message.reason == f"open --landlock-rules {tmp_path}/no: No such file or directory"
    rig.open("block", pack_spec(BlockSpec("")), image)
    _, (fd,) = rig.take(rig.warden)
    os.close(fd)


def make(rig: OpenerRig, path: Path) -> str:
    """Have a file made for a core dump; return why there is none."""
    rig.control.send(protocol.Make(9, os.fsencode(path)))
    message, fds = rig.take(rig.control)
    assert isinstance(message, protocol.Made)
    assert message.number == 9
    assert len(fds) == (not message.reason)
    for fd in fds:
        assert stat.S_IMODE(os.fstat(fd).st_mode) == 0o600
        os.ftruncate(fd, 4096)
        os.close(fd)
    return message.reason


def test_new_file_is_made_and_no_other(rig: OpenerRig, tmp_path: Path) -> None:
    assert not make(rig, tmp_path / "core")
    assert (tmp_path / "core").stat().st_size == 4096
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    for name in ("core", "link", "."):
        assert make(rig, tmp_path / name) == f"make {tmp_path / name}: File exists"
    assert make(rig, tmp_path / "a/b") == f"make {tmp_path}/a/b: No such file or directory"
    assert not (tmp_path / "nowhere").exists()
    rig.wait_until_idle()


def test_file_is_made_where_the_rules_let_it_be_written(
    restricted: OpenerRig, tmp_path: Path
) -> None:
    assert not make(restricted, tmp_path / "rw" / "core")
    for name in ("r/core", "outside/core", "rw/../core"):
        reason = f"make {tmp_path}/{name}: Permission denied"
        reason += " (no --landlock-rules lets it be opened)"
        assert make(restricted, tmp_path / name) == reason
        assert not (tmp_path / name).exists()


def test_path_that_is_no_text_is_opened(rig: OpenerRig, tmp_path: Path) -> None:
    path = tmp_path / os.fsdecode(b"\xff\xfe.img")
    path.write_bytes(bytes(512))
    rig.open("block", pack_spec(BlockSpec("")), path)
    _, (fd,) = rig.take(rig.warden)
    os.close(fd)


@pytest.mark.parametrize(
    ("kind", "spec", "reason"),
    [
        ("gpu", b"", "no device of kind"),
        ("balloon", b"", "no device of kind"),
        ("block", b"", "not msgpack"),
        ("block", b"\xc1", ""),
        ("block", pack_spec(RngSpec()), ""),
        ("net", pack_spec(LaterCard("")), "name of a TAP"),
        ("net", pack_spec(LaterCard("tap0", b"123")), "6 bytes"),
        ("net", pack_spec(LaterCard("no-such")), "there is no TAP"),
        ("rng", b"\x91\x07", ""),
    ],
)
def test_request_for_no_device_is_refused_and_leaves_nothing(
    rig: OpenerRig, kind: str, spec: bytes, reason: str
) -> None:
    rig.open(kind, spec)
    assert reason in rig.refusal()
    rig.wait_until_idle()
    before = held(rig.pid)
    for _ in range(10):
        rig.open(kind, spec)
        assert reason in rig.refusal()
    rig.wait_until_idle()
    assert held(rig.pid) == before


def test_entropy_needs_nothing(rig: OpenerRig) -> None:
    rig.open("rng", pack_spec(RngSpec()))
    order, fds = rig.take(rig.warden)
    assert isinstance(order, warden_protocol.Add)
    assert (order.kind, fds) == ("rng", [])


def test_refusal_of_the_warden_is_passed_on(rig: OpenerRig) -> None:
    rig.warden.send(warden_protocol.NotAdded(7, "64 devices are there already"))
    assert rig.refusal() == "64 devices are there already"


@pytest.mark.parametrize("payload", [b"\xc1", b"\x91\x01", b"\x91" * 2000, b"x" * 70000])
def test_garbage_of_the_control_process_ends_the_opener_in_order(payload: bytes) -> None:
    rig = OpenerRig()
    rig.sock.send(payload)
    _, status = os.waitpid(rig.pid, 0)
    assert os.waitstatus_to_exitcode(status) == 0
    rig.control.close()
    rig.warden.close()


def test_opener_ends_with_its_control_process() -> None:
    rig = OpenerRig()
    rig.control.close()
    _, status = os.waitpid(rig.pid, 0)
    assert os.waitstatus_to_exitcode(status) == 0
    rig.warden.close()


def test_request_that_hangs_keeps_no_other_from_being_served(
    image: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read_fd, write_fd = os.pipe()
    monkeypatch.setitem(later._OPENERS, "rng", lambda _wanted: os.read(read_fd, 1))
    close = linux.close_all_fds_except
    monkeypatch.setattr(linux, "close_all_fds_except", lambda keep: close({*keep, read_fd}))
    rig = OpenerRig()
    try:
        for _ in range(MAX_HANDS - 1):
            rig.open("rng", pack_spec(RngSpec()))
        for _ in range(3):
            assert rig.served(image)
        rig.wait_until_idle(MAX_HANDS - 1)
        rig.open("rng", pack_spec(RngSpec()))
        assert f"waits for {MAX_HANDS} files" in rig.refused(image)
        os.kill(min(children(rig.pid)), signal.SIGKILL)
        assert "was killed by signal 9" in rig.refusal()
        assert rig.served(image)
    finally:
        os.close(write_fd)  # all of them end
        os.close(read_fd)
        rig.close()
