# SPDX-License-Identifier: BSD-3-Clause
"""From --serial to the bus: what is refused, which port is where, and restoring the terminal."""

from __future__ import annotations

import os
import signal
import threading
from typing import TYPE_CHECKING

import pytest

from crosvm_py.config import SerialSpec
from crosvm_py.console import ends, terminal
from crosvm_py.console.output import NullSink
from crosvm_py.console.serial_ports import SerialPorts, open_serial_ports
from devices.bus import Bus
from devices.debugcon import DebugConsole
from sys_util.errors import ConfigError, HostError
from sys_util.event_loop import EventLoop

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = pytest.mark.usefixtures("steady_fds")

THR, IER, MCR, LSR, SCR = 0, 1, 4, 5, 7
COM1, COM2, COM3, COM4 = 0x3F8, 0x2F8, 0x3E8, 0x2E8


class FakeLine:
    def __init__(self) -> None:
        self.levels: list[bool] = []

    def set_level(self, asserted: bool) -> None:
        self.levels.append(asserted)


class Board:
    """The part of a machine that serial ports are plugged into."""

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self.bus = Bus("pio", self.lock)
        self.loop = EventLoop()
        self.lines: dict[int, FakeLine] = {}
        self.left = 0

    def irq_line(self, irq: int) -> FakeLine:
        assert irq not in self.lines
        self.lines[irq] = FakeLine()
        return self.lines[irq]

    def plug(self, ports: SerialPorts) -> None:
        ports.attach(self.bus, self.irq_line, self.loop, self.lock, self._leave)

    def _leave(self) -> None:
        self.left += 1


@pytest.fixture
def board() -> Iterator[Board]:
    board = Board()
    yield board
    board.loop.close()


@pytest.mark.parametrize(
    ("specs", "reason"),
    [
        pytest.param([SerialSpec("sink", num=0)], r"num=0: not in 1\.\.4", id="num 0"),
        pytest.param([SerialSpec("sink", num=5)], r"num=5: not in 1\.\.4", id="num 5"),
        pytest.param([SerialSpec("sink"), SerialSpec("sink")], "num=1: given twice", id="twice"),
        pytest.param([SerialSpec("virtio")], "type=virtio: not stdout", id="type"),
        pytest.param(
            [SerialSpec("sink", hardware="parallel")],
            "hardware=parallel: not serial, debugcon or virtio-console",
            id="hardware",
        ),
        pytest.param([SerialSpec("file")], "type=file: path= is missing", id="no path"),
        pytest.param([SerialSpec("unix", path="")], "type=unix: path= is missing", id="empty"),
        pytest.param(
            [SerialSpec("sink", stdin=True), SerialSpec("sink", num=2, stdin=True)],
            "stdin: only one port",
            id="stdin twice",
        ),
        pytest.param(
            [SerialSpec("sink", console=True), SerialSpec("sink", num=2, console=True)],
            "console: only one port",
            id="console twice",
        ),
        pytest.param(
            [SerialSpec("sink", stdin=True, input="x")],
            "input=x and stdin exclude each other",
            id="two inputs",
        ),
        pytest.param(
            [SerialSpec("sink", hardware="debugcon", console=True)],
            "debugcon-port=0x402: a debug console is for output only",
            id="debugcon console",
        ),
        pytest.param(
            [SerialSpec("sink", hardware="debugcon"), SerialSpec("sink", hardware="debugcon")],
            "debugcon-port=0x402: given twice",
            id="debugcon twice",
        ),
    ],
)
def test_contradictory_specs_are_refused(specs: list[SerialSpec], reason: str) -> None:
    with pytest.raises(ConfigError, match=reason):
        open_serial_ports(specs)


def test_failure_closes_what_was_opened(tmp_path: Path) -> None:
    before = set(os.listdir("/proc/self/fd"))
    specs = [
        SerialSpec("file", path=str(tmp_path / "log")),
        SerialSpec("file", num=2, path=str(tmp_path / "missing" / "log")),
    ]
    with pytest.raises(HostError, match="missing/log"):
        open_serial_ports(specs)
    assert set(os.listdir("/proc/self/fd")) == before


def test_kernel_parameters_name_console_and_earlycon() -> None:
    ports = open_serial_ports(
        [SerialSpec("sink", num=2, console=True), SerialSpec("sink", num=3, earlycon=True)]
    )
    assert ports.kernel_parameters == ("console=ttyS1", "earlycon=uart8250,io,0x3e8")
    ports.close()


def test_all_com_ports_exist_and_sinks_swallow(board: Board) -> None:
    ports = open_serial_ports([])
    board.plug(ports)
    for base in (COM1, COM2, COM3, COM4):
        board.bus.write(base + SCR, 1, 0x5A)
        assert board.bus.read(base + SCR, 1) == 0x5A
        board.bus.write(base + THR, 1, 0x41)
        assert board.bus.read(base + LSR, 1) == 0x60
    assert ports.kernel_parameters == ()
    ports.close()


def test_output_reaches_its_file(board: Board, tmp_path: Path) -> None:
    path = tmp_path / "con.log"
    ports = open_serial_ports([SerialSpec("file", num=2, path=str(path))])
    board.plug(ports)
    for value in b"hello\n":
        board.bus.write(COM2 + THR, 1, value)
    ports.close()
    ports.close()
    assert path.read_bytes() == b"hello\n"


def test_debug_console_stands_at_its_port(board: Board, tmp_path: Path) -> None:
    path = tmp_path / "debug.log"
    spec = SerialSpec("file", hardware="debugcon", path=str(path), debugcon_port=0xE9)
    ports = open_serial_ports([spec])
    board.plug(ports)
    assert board.bus.read(0xE9, 1) == 0xE9
    board.bus.write(0xE9, 1, 0x78)
    ports.close()
    assert path.read_bytes() == b"x"


def test_debug_console_on_a_taken_port_is_refused(board: Board) -> None:
    board.bus.insert(0x505, 1, DebugConsole(NullSink()))
    ports = open_serial_ports([SerialSpec("sink", hardware="debugcon", debugcon_port=0x505)])
    with pytest.raises(ConfigError, match="port 0x505 is taken"):
        board.plug(ports)
    ports.close()


def test_ports_that_share_an_irq_keep_it_up_for_each_other(board: Board) -> None:
    ports = open_serial_ports([])
    board.plug(ports)
    board.bus.write(COM1 + IER, 1, 0x02)
    board.bus.write(COM3 + IER, 1, 0x02)
    board.bus.write(COM1 + IER, 1, 0x00)
    assert board.lines[4].levels == [True]
    board.bus.write(COM3 + IER, 1, 0x00)
    assert board.lines[4].levels == [True, False]
    assert board.lines[3].levels == []
    ports.close()


def test_input_file_reaches_the_guest(board: Board, tmp_path: Path) -> None:
    path = tmp_path / "script"
    path.write_bytes(b"ls\n")
    ports = open_serial_ports([SerialSpec("sink", input=str(path))])
    board.plug(ports)
    board.bus.write(COM1 + MCR, 1, 0x0B)
    received = []
    while board.bus.read(COM1 + LSR, 1) & 0x01:
        received.append(board.bus.read(COM1 + THR, 1))
    assert bytes(received) == b"ls\n"
    ports.close()


@pytest.fixture
def console_ports(user: int, board: Board) -> Iterator[SerialPorts]:
    ports = open_serial_ports([SerialSpec("stdout", console=True, stdin=True)])
    board.plug(ports)
    yield ports
    ports.close()


def test_console_on_a_terminal_is_interactive(
    user: int, console_ports: SerialPorts, board: Board
) -> None:
    os.write(user, b"\x03")
    board.loop.run_once(5.0)
    board.bus.write(COM1 + MCR, 1, 0x0B)
    assert board.bus.read(COM1 + LSR, 1) == 0x61
    assert board.bus.read(COM1 + THR, 1) == 0x03
    board.bus.write(COM1 + THR, 1, ord("$"))
    assert os.read(user, 16) == b"$"


def test_console_help_and_leave_keys(user: int, console_ports: SerialPorts, board: Board) -> None:
    os.write(user, b"\x01h")
    board.loop.run_once(5.0)
    assert b"Ctrl-A x  leave" in os.read(user, 4096)
    os.write(user, b"\x01x")
    board.loop.run_once(5.0)
    assert board.left == 1


def test_close_gives_the_terminal_back(user: int, board: Board) -> None:
    before = terminal.save(ends.STDIN)
    ports = open_serial_ports([SerialSpec("stdout", console=True, stdin=True)])
    assert terminal.save(ends.STDIN) == before
    board.plug(ports)
    assert terminal.save(ends.STDIN) != before
    ports.close()
    assert terminal.save(ends.STDIN) == before


def test_warden_gives_the_terminal_back_after_a_kill(user: int, console_ports: SerialPorts) -> None:
    owner = console_ports.terminal
    assert owner is not None
    child = os.fork()  # has what the warden has: the object, made before the fork
    if child == 0:
        owner.is_raw = False
        owner.restore()
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
    assert terminal.save(ends.STDIN) == owner.state


def test_continue_after_a_stop_sets_raw_mode_again(
    user: int, console_ports: SerialPorts, board: Board
) -> None:
    owner = console_ports.terminal
    assert owner is not None
    terminal.apply(owner.fd, owner.state)
    signal.raise_signal(signal.SIGCONT)
    board.loop.run_once(5.0)
    assert terminal.save(owner.fd) == terminal.raw(owner.state)


def test_closed_stdin_is_no_input(monkeypatch: pytest.MonkeyPatch, board: Board) -> None:
    monkeypatch.setattr(ends, "STDIN", 9999)
    ports = open_serial_ports([SerialSpec("sink", stdin=True)])
    board.plug(ports)
    assert ports.terminal is None
    ports.close()
