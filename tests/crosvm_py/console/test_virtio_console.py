# SPDX-License-Identifier: BSD-3-Clause
"""From --serial to the order for the device: descriptors, names, sizes, keys, and the end."""

from __future__ import annotations

import os
import signal
import socket
import termios
import threading
import time
from typing import TYPE_CHECKING

import pytest

from crosvm_py.config import SerialSpec
from crosvm_py.console import virtio_console
from crosvm_py.console.serial_ports import open_serial_ports
from crosvm_py.console.targets import open_unix_stream
from crosvm_py.console.terminal import save
from crosvm_py.console.virtio_console import KEY_BYTES, KeyPipe, VirtioConsole
from crosvm_py.kinds.console import open_console
from crosvm_py.kinds.table import build_device
from devices.virtio.commands import Command, Drain, Refused, SetWindow, Waiting
from devices.virtio.console.backlog import backlogs_bytes
from devices.virtio.console.device import Console, PortSpec
from sys_util.errors import ConfigError, HostError
from sys_util.event_loop import EventLoop
from sys_util.wire import Message

if TYPE_CHECKING:
    from pathlib import Path

    from crosvm_py.vmm.link import CommandResult

pytestmark = pytest.mark.usefixtures("steady_fds")

HVC = "virtio-console"


def virtio(specs: list[SerialSpec]) -> VirtioConsole:
    console = open_serial_ports(specs).virtio
    assert console is not None
    return console


def told(console: VirtioConsole) -> tuple[list[PortSpec], tuple[int, ...]]:
    """Return what the device is told and given."""
    spec, (*fds, backlogs) = console.hand_over()
    assert spec.has_backlogs
    assert os.fstat(backlogs).st_size == backlogs_bytes(len(spec.ports))
    with pytest.raises(PermissionError):
        os.ftruncate(backlogs, 0)
    os.close(backlogs)
    return list(spec.ports), tuple(fds)


class Device:
    """The other side of ``connect``: keeps what it was asked, and answers."""

    def __init__(self) -> None:
        self.asked: list[Command] = []
        self.answers: list[Message] = []
        self.is_there = True

    def command(self, command: Command, then: CommandResult) -> None:
        self.asked.append(command)
        if not self.is_there:
            then(Refused("gone"))
        elif self.answers:
            then(self.answers.pop(0))

    @property
    def sizes(self) -> list[tuple[int, int, int]]:
        told = (command for command in self.asked if isinstance(command, SetWindow))
        return [(command.port, command.columns, command.rows) for command in told]


def test_ports_are_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    console = virtio(
        [
            SerialSpec("sink", HVC, num=7, console=True),
            SerialSpec("file", HVC, num=2, path=str(tmp_path / "log"), name="org.log"),
            SerialSpec("sink", HVC, num=1),
        ]
    )
    ports, fds = told(console)
    assert [(port.name, port.is_console, port.output) for port in ports] == [
        ("", True, "none"),
        ("org.log", False, "stream"),
        ("", True, "none"),
    ]
    assert console.kernel_parameters == ("console=hvc1",)  # data ports have no such number
    os.write(fds[0], b"x")
    os.close(fds[0])
    assert (tmp_path / "log").read_bytes() == b"x"


def test_port_with_a_name_that_is_the_console_is_one() -> None:
    console = virtio([SerialSpec("sink", HVC, console=True, name="main")])
    assert [port.is_console for port in told(console)[0]] == [True]
    assert console.kernel_parameters == ("console=hvc0",)


def test_order_builds_the_device(tmp_path: Path) -> None:
    (tmp_path / "in").write_bytes(b"input")
    spec = SerialSpec("file", HVC, path=str(tmp_path / "out"), input=str(tmp_path / "in"))
    order = open_console(virtio([spec]))
    device = build_device(order.kind, order.spec, order.fds)
    assert isinstance(device, Console)
    assert [spec.input for spec in device._specs] == ["regular"]
    for fd in order.fds:
        os.close(fd)


def test_null_device_counts_as_a_file_without_events() -> None:
    ports, fds = told(virtio([SerialSpec("sink", HVC, input="/dev/null")]))
    assert ports[0].input == "regular"
    os.close(fds[0])


def test_unix_stream_goes_both_ways(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tmp_path / "s"))
        server.listen()
        spec = SerialSpec("unix-stream", HVC, path=str(tmp_path / "s"), input_unix_stream=True)
        ports, fds = told(virtio([spec]))
        assert (ports[0].output, ports[0].input) == ("socket", "stream")
        peer, _ = server.accept()
        with peer:
            peer.send(b"in")
            assert os.read(fds[1], 16) == b"in"
            os.write(fds[0], b"out")
            assert peer.recv(16) == b"out"
    for fd in fds:
        os.close(fd)


@pytest.mark.parametrize(
    ("spec", "reason"),
    [
        pytest.param(SerialSpec("file", HVC, 2, path="/nowhere/f"), "/nowhere/f", id="file"),
        pytest.param(SerialSpec("sink", HVC, 2, input="/nowhere/i"), "/nowhere/i", id="input"),
        pytest.param(SerialSpec("tape", HVC, 2), "type=tape: not stdout, .* or pty", id="type"),
    ],
)
def test_failure_closes_what_was_opened(spec: SerialSpec, reason: str) -> None:
    before = os.listdir("/proc/self/fd")
    with pytest.raises((ConfigError, HostError), match=reason):
        open_serial_ports([SerialSpec("pty", HVC), SerialSpec("pty"), spec])
    assert os.listdir("/proc/self/fd") == before


def test_close_before_the_order_closes_everything() -> None:
    before = os.listdir("/proc/self/fd")
    ports = open_serial_ports([SerialSpec("pty", HVC), SerialSpec("pty")])
    ports.close()
    ports.close()
    assert os.listdir("/proc/self/fd") == before


def test_unix_stream_without_a_listener_names_the_path(tmp_path: Path) -> None:
    with pytest.raises(HostError, match=r"path=.*/nobody.*a stream socket must listen there"):
        open_unix_stream(str(tmp_path / "nobody"), wait_seconds=0.0)


@pytest.mark.parametrize(
    ("specs", "reason"),
    [
        ([SerialSpec("sink", HVC), SerialSpec("sink", HVC)], "num=1: given twice"),
        ([SerialSpec("sink", HVC, earlycon=True)], "too late for earlycon"),
        (
            [SerialSpec("sink", HVC, console=True), SerialSpec("sink", console=True)],
            "console: only",
        ),
    ],
)
def test_contradictory_ports_are_refused(specs: list[SerialSpec], reason: str) -> None:
    with pytest.raises(ConfigError, match=reason):
        open_serial_ports(specs)


def test_pty_is_raw_and_goes_both_ways() -> None:
    console = virtio([SerialSpec("pty", HVC)])
    ports, (out, into) = told(console)
    assert (ports[0].output, ports[0].input, ports[0].has_size) == ("stream", "stream", True)
    user = os.open(_pts(console), os.O_RDWR)
    assert not save(user).local_modes & (termios.ECHO | termios.ICANON)
    os.write(out, b"guest\n")
    assert os.read(user, 16) == b"guest\n"
    os.write(user, b"\x03")
    assert os.read(into, 16) == b"\x03"
    os.close(user)
    with pytest.raises(BlockingIOError):  # and no end of file: the next user may come
        os.read(into, 16)
    console.close()
    os.close(out)
    os.close(into)


def _pts(console: VirtioConsole) -> str:
    return os.ttyname(console._ports[0].pty_fd)


def test_size_of_a_pty_is_followed(loop: EventLoop, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(virtio_console, "PTY_SECONDS", 0.0)
    console, device = virtio([SerialSpec("sink", HVC), SerialSpec("pty", HVC, num=2)]), Device()
    _, fds = told(console)
    console.start(loop, threading.RLock())
    console.connect(device.command)
    assert device.sizes == []
    termios.tcsetwinsize(fds[0], (30, 90))
    loop.run_once(5.0)
    assert device.sizes == [(1, 90, 30)]
    loop.run_once(5.0)
    assert len(device.sizes) == 1
    console.close()
    loop.run_once(5.0)
    for fd in fds:
        os.close(fd)


def test_size_that_no_process_took_is_told_again(
    loop: EventLoop, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(virtio_console, "_RETRY_SECONDS", 0.0)
    console, device = virtio([SerialSpec("pty", HVC)]), Device()
    _, fds = told(console)
    console.start(loop, threading.RLock())
    console.connect(device.command)
    device.is_there = False
    termios.tcsetwinsize(fds[0], (30, 90))
    console.check_sizes()
    loop.run_once(5.0)
    device.is_there = True
    loop.run_once(5.0)
    assert device.sizes == [(0, 90, 30)] * 3
    loop.run_once(0.0)
    assert len(device.sizes) == 3
    console.close()
    for fd in fds:
        os.close(fd)


@pytest.fixture
def user(user: int) -> int:
    termios.tcsetwinsize(user, (24, 80))
    return user


def test_keys_and_size_of_the_users_terminal_reach_the_device(user: int, loop: EventLoop) -> None:
    console = virtio([SerialSpec("stdout", HVC, console=True, stdin=True)])
    device = Device()
    ports, (out, keys) = told(console)
    assert (ports[0].columns, ports[0].rows, ports[0].has_size) == (80, 24, True)
    assert console.terminal is not None
    console.start(loop, threading.RLock())
    console.connect(device.command)
    os.write(user, b"ls\r\x01a\x01b")
    loop.run_once(5.0)
    assert os.read(keys, 64) == b"ls\r\x01\x0f"
    termios.tcsetwinsize(user, (50, 132))
    signal.raise_signal(signal.SIGWINCH)
    loop.run_once(5.0)
    assert device.sizes == [(0, 132, 50)]
    console.terminal.leave()
    console.close()
    assert signal.getsignal(signal.SIGWINCH) is signal.SIG_DFL
    os.close(out)
    os.close(keys)


def test_device_that_takes_no_keys_makes_the_input_wait(loop: EventLoop) -> None:
    ours, theirs = socket.socketpair()
    ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1)
    pipe, room = KeyPipe(ours), []
    pipe.on_room = lambda: room.append(pipe.room)
    pipe.start(loop)
    sent = 0
    while pipe.room:
        sent += pipe.receive(b"k" * 1000)
    assert pipe.receive(b"more") == 0
    received = len(theirs.recv(1 << 20))
    while received < sent:
        loop.run_once(5.0)
        received += len(theirs.recv(1 << 20))
    assert received == sent
    assert room[-1] == KEY_BYTES
    pipe.close()
    theirs.close()


def test_keys_for_a_device_that_is_gone_are_dropped(loop: EventLoop) -> None:
    ours, theirs = socket.socketpair()
    pipe = KeyPipe(ours)
    pipe.start(loop)
    theirs.close()
    assert pipe.receive(b"x" * KEY_BYTES) == KEY_BYTES
    assert pipe.room == KEY_BYTES
    pipe.close()


def test_drain_asks_until_nothing_waits() -> None:
    console, device = virtio([SerialSpec("sink", HVC)]), Device()
    device.answers = [Waiting(9), Waiting(4), Waiting(0)]
    turns: list[float] = []
    console.connect(device.command)
    console.drain(turns.append)
    assert device.asked == [Drain()] * 3
    assert len(turns) == 2


@pytest.mark.parametrize("answers", [[], [Waiting(9)] * 9])
def test_drain_has_no_more_than_its_time(
    answers: list[Message], monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 0.0
    monkeypatch.setattr(time, "monotonic", lambda: now)

    def turn(seconds: float) -> None:
        nonlocal now
        now += 0.3

    console, device = virtio([SerialSpec("sink", HVC)]), Device()
    device.answers = answers
    console.connect(device.command)
    console.drain(turn)
    assert now <= 1.2
