# SPDX-License-Identifier: BSD-3-Clause
"""A console whose process is killed at each of its steps, and the process that takes its place.

Output is never lost, and what one system call wrote just before the kill is all that can come
twice: the host took it, and nobody was left to say so.
"""

from __future__ import annotations

import fcntl
import gc
import os
import socket
import struct
import termios
from typing import TYPE_CHECKING

import msgpack
import pytest

from devices.virtio.commands import SetWindow
from devices.virtio.console.backlog import BACKLOG_BYTES, backlogs_bytes
from devices.virtio.console.control import Event
from devices.virtio.console.device import MAX_PORTS, Console, ConsoleSpec, PortSpec
from devices.virtio.console.state import ConsoleState, PortState
from devices.virtio.saved_state import MAX_STATE_BYTES
from tests.support.console_driver import DATA_PORT, LONE, PIPE_BYTES, RECEIVE, TRANSMIT, Pipes
from tests.support.device_context import DriverSide
from tests.support.killed import each_kill, each_kill_and_lines, shared_state
from tests.support.sockets import arrived

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

pytestmark = pytest.mark.usefixtures("every_line_is_expected")

CONTROL_RECEIVE, CONTROL_TRANSMIT = 2, 3
BAD_ID = 0xFFFF_FFFF


@pytest.fixture(autouse=True, scope="module")
def no_descriptors_left() -> Iterator[None]:
    """Close what goes away by itself, for tests that count descriptors: mappings have one each."""
    yield
    gc.collect()


class Scene(Pipes):
    """A console that is made again and again over the same descriptors."""

    def __init__(self, *specs: PortSpec, fds: Sequence[int] = ()) -> None:
        self._specs = specs
        self._given_fds = fds
        self._consoles: list[Console] = []
        self.ends: list[int] = []  # what the present process holds
        self._backlogs_fd = os.memfd_create("backlogs", os.MFD_CLOEXEC)
        os.ftruncate(self._backlogs_fd, backlogs_bytes(len(specs)))
        super().__init__(*specs)
        self.fds.append(self._backlogs_fd)

    def take(self, console: Console) -> None:
        del console
        self.console = self._new()
        self.driver = DriverSide(self.console, self.memory, saved=shared_state())

    def take_over(self) -> None:
        """Let a new process take the place of the one that was killed."""
        self.console = self._new()
        self.driver.replace(self.console)
        self.turn()

    def _new(self) -> Console:
        self.ends = [os.dup(fd) for fd in self._given_fds or self.device_fds]
        spec = ConsoleSpec(self._specs, has_backlogs=True)
        self._consoles.append(Console(spec, [*self.ends, self._backlogs_fd]))
        return self._consoles[-1]

    def close(self) -> None:
        for console in self._consoles[:-1]:
            console.close()
        super().close()
        for fd in self.device_fds:
            os.close(fd)

    def turn(self) -> None:
        """Let the loop do everything that there is to be done."""
        self.driver.context.advance(0)

    def read_all(self, port: int = 0) -> bytes:
        found = b""
        while piece := self.read(port):
            found += piece
            if self.output_fd(port) in self.driver.context.fds:
                self.room(port)
        return found

    def seen(self) -> object:
        left = [unread(fd) for fd in (*self.outputs, *self.device_fds)]
        return (left, self.driver.seen(), os.pread(self._backlogs_fd, 1 << 20, 0))


def unread(fd: int) -> int:
    """Return how many bytes wait in a pipe."""
    (count,) = struct.unpack("i", fcntl.ioctl(fd, termios.FIONREAD, bytes(4)))
    return int(count)


def has_once(found: bytes, pieces: list[bytes]) -> bool:
    """Return whether ``found`` is all pieces in order, at most one of them repeated at once."""
    repeated = (pieces[: n + 1] + pieces[n:] for n in range(len(pieces)))
    return found == b"".join(pieces) or any(found == b"".join(each) for each in repeated)


def open_lone(*pieces: bytes, spec: PortSpec = LONE, fds: Sequence[int] = ()) -> Scene:
    scene = Scene(spec, fds=fds)
    scene.driver.start()
    for piece in pieces:
        scene.driver.queues[TRANSMIT].submit([piece])
    return scene


def transmit(scene: Scene, queue: int = TRANSMIT) -> None:
    scene.driver.kick_unserved(queue)
    while scene.driver.worker.on_kick(queue):
        scene.turn()


def test_output_is_whole_wherever_the_process_ends() -> None:
    pieces = [b"one ", b"two "]
    doubled = 0
    for scene, lines_of_code in each_kill_and_lines(lambda: open_lone(*pieces), transmit):
        scene.take_over()
        found = scene.read_all()
        assert has_once(found, pieces)
        assert len(scene.driver.queues[TRANSMIT].collect()) == len(pieces)
        doubled += lines_of_code * (len(found) > len(b"".join(pieces)))
    assert doubled <= len(pieces)  # the store right behind each system call


def test_output_that_waits_for_its_reader_survives() -> None:
    first, rest = b"a" * PIPE_BYTES, [b"b" * 1000, b"c" * 1000]
    doubled = 0
    for scene, lines_of_code in each_kill_and_lines(
        lambda: open_lone(first + b"+", *rest), transmit
    ):
        before = scene.read()
        scene.take_over()
        found = before + scene.read_all()
        whole = first + b"+" + b"".join(rest)
        assert found in (whole, first + whole)
        assert len(scene.driver.queues[TRANSMIT].collect()) == 3
        doubled += lines_of_code * (found != whole)
    assert doubled <= 1


def test_backlog_is_written_once_whoever_writes_it() -> None:
    first, rest = b"a" * PIPE_BYTES, [b"b" * 100, b"c" * 100]

    def make() -> Scene:
        scene = open_lone(first, *rest)
        transmit(scene)
        assert scene.read() == first
        return scene

    doubled = 0
    for scene, lines_of_code in each_kill_and_lines(make, Scene.room):
        scene.take_over()
        found = scene.read_all()
        assert found in (b"".join(rest), b"".join(rest) * 2)
        doubled += lines_of_code * (found != b"".join(rest))
    assert doubled <= 1


def test_chain_of_a_waiting_port_is_written_on_where_it_was() -> None:
    spec = LONE._replace(is_console=False)
    data = bytes(range(256)) * 40
    doubled = 0
    for scene, lines_of_code in each_kill_and_lines(
        lambda: open_lone(data, b"end", spec=spec), transmit
    ):
        before = scene.read()
        scene.take_over()
        found = before + scene.read_all()
        assert found in (data + b"end", data[:PIPE_BYTES] + data + b"end")
        doubled += lines_of_code * (len(found) > len(data) + 3)
    assert doubled <= 1


def test_input_reaches_the_driver_wherever_the_process_ends() -> None:
    def make() -> Scene:
        scene = Scene(LONE)
        scene.driver.start()
        for _ in range(3):
            scene.driver.queues[RECEIVE].submit(into=[4])
        os.write(scene.inputs[0], b"one.two.")
        return scene

    def receive(scene: Scene) -> None:
        scene.driver.kick(RECEIVE)
        for _ in range(2):
            scene.driver.context.fire(scene.ends[1])

    lost = 0
    for scene, lines_of_code in each_kill_and_lines(make, receive):
        scene.take_over()
        while unread(scene.device_fds[1]):
            scene.driver.context.fire(scene.ends[1])
        found = b"".join(data[:used] for _, used, data in scene.driver.queues[RECEIVE].collect())
        assert found in (b"one.two.", b"one.", b"two.")
        lost += lines_of_code * (found != b"one.two.")
    assert lost <= 2  # each in the moment of its read


class TwoPorts(Scene):
    """A console and a data port, and a driver that notes what it is told."""

    def __init__(self) -> None:
        super().__init__(LONE, DATA_PORT)
        self.driver.start()
        for _ in range(12):
            self.driver.queues[CONTROL_RECEIVE].submit(into=[64])
        self.driver.kick(CONTROL_RECEIVE)

    def submit(self, port: int, event: int, value: int = 1) -> None:
        self.driver.queues[CONTROL_TRANSMIT].submit([struct.pack("<IHH", port, event, value)])

    def serve_control(self) -> None:
        transmit(self, CONTROL_TRANSMIT)
        self.turn()

    def heard(self) -> list[tuple[int, int]]:
        """Return port and event of what the driver was told."""
        queue = self.driver.queues[CONTROL_RECEIVE]
        return [struct.unpack("<IH", data[:6]) for _, _, data in queue.collect()]


def test_each_port_is_announced_once() -> None:
    def make() -> TwoPorts:
        scene = TwoPorts()
        scene.submit(BAD_ID, Event.DEVICE_READY)
        scene.submit(1, Event.PORT_READY)
        scene.submit(BAD_ID, Event.DEVICE_READY)
        return scene

    for scene in each_kill(make, TwoPorts.serve_control):
        scene.take_over()
        assert sorted(scene.heard()) == [
            (0, Event.PORT_ADD),
            (1, Event.PORT_ADD),
            (1, Event.PORT_OPEN),
            (1, Event.PORT_NAME),
        ]


@pytest.mark.parametrize("is_open", [0, 1])
def test_port_is_open_or_closed_as_the_driver_said(is_open: int) -> None:
    def make() -> TwoPorts:
        scene = TwoPorts()
        for value in (1, is_open):
            scene.submit(1, Event.PORT_OPEN, value)
        return scene

    for scene in each_kill(make, TwoPorts.serve_control):
        scene.take_over()
        scene.driver.queues[4].submit(into=[8])
        scene.driver.kick(4)
        assert (scene.ends[3] in scene.driver.context.fds) == bool(is_open)
        assert scene.heard() == []


def test_new_size_is_told_and_stays() -> None:
    def make() -> TwoPorts:
        scene = TwoPorts()
        scene.submit(0, Event.PORT_READY)
        scene.serve_control()
        scene.heard()
        return scene

    def resize(scene: TwoPorts) -> None:
        scene.console.command(SetWindow(0, 132, 50))

    for scene in each_kill(make, resize):
        scene.take_over()
        resize(scene)  # the vmm heard no answer
        assert scene.heard() in ([(0, Event.RESIZE)], [(0, Event.RESIZE)] * 2)
        assert scene.console.config() == struct.pack("<HHII", 132, 50, 2, 0)


def test_lines_go_out_whole_wherever_the_process_ends() -> None:
    spec = LONE._replace(output="lines", input="none")
    pairs = []

    def make() -> Scene:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
        ours.setblocking(False)
        pairs.append((ours, theirs))
        return open_lone(b"one\ntw", b"o\nthree\n", spec=spec, fds=[theirs.fileno()])

    doubled = 0
    for scene, lines_of_code in each_kill_and_lines(make, transmit):
        scene.take_over()
        found = arrived(pairs[-1][0])
        assert has_once(b"".join(found), [b"one", b"two", b"three"])
        doubled += lines_of_code * (len(found) > 3)
    assert doubled <= 6
    for ends in pairs:
        for end in ends:
            end.close()


PORT = [80, 25, 3, 0, 0, -1, 0, 0]


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"ports": [], "sending": [-1, 0, 0], "heard": -1},
        {"ports": [PORT], "sending": None, "heard": -1},
        {"ports": [PORT], "sending": [-1, 0, 0], "heard": 1 << 16},
        {"ports": [PORT], "sending": [-2, 0, 0], "heard": -1},
        {"ports": [PORT], "sending": [0, 1, 0], "heard": -1},
        {"ports": [PORT], "sending": [0, 0, 8], "heard": -1},
        {"ports": [PORT[:-1]], "sending": [-1, 0, 0], "heard": -1},
        {"ports": ["x" * 1000], "sending": [-1, 0, 0], "heard": -1},
        *(
            {"ports": [[*PORT[:at], value, *PORT[at + 1 :]]], "sending": [-1, 0, 0], "heard": -1}
            for at, value in [
                *((0, -1), (1, 1 << 16), (2, 8), (3, 256), (4, -1), (4, BACKLOG_BYTES + 1)),
                *((4, 1 << 63), (5, -2), (5, 1 << 16), (6, -1), (7, -1), (7, 1.5), (0, True)),
            ]
        ),
    ],
)
def test_nonsense_of_the_last_process_is_one_line_and_no_more(
    fields: dict[str, object], lines: list[str]
) -> None:
    scene = open_lone()
    scene.driver.context.saved.store(fields)
    scene.take_over()
    (line,) = lines
    assert "saved state is not used" in line
    lines.clear()
    scene.driver.queues[TRANSMIT].submit([b"goes on"])
    transmit(scene)
    assert scene.read() == b"goes on"
    scene.close()


@pytest.mark.parametrize(
    ("cells", "told"),
    [([1 << 63], 1), ([(1 << 62) - 1], 1), ([0, 1 << 47], 0), ([0, 0, 1 << 47], 0)],
)
def test_nonsense_in_the_cells_ends_nothing(cells: list[int], told: int, lines: list[str]) -> None:
    scene = open_lone()
    os.pwrite(scene._backlogs_fd, struct.pack(f"{len(cells)}Q", *cells), 0)
    scene.take_over()
    scene.driver.queues[TRANSMIT].submit([b"goes on"])
    scene.driver.queues[RECEIVE].submit(into=[8])
    transmit(scene)
    scene.driver.kick(RECEIVE)
    assert scene.read() == b"goes on"
    assert len(lines) == told
    lines.clear()
    scene.close()


def test_state_of_the_largest_console_fits() -> None:
    state = ConsoleState((PortState(*_largest()),) * MAX_PORTS, (0xFFFF, 15, 7))
    assert len(msgpack.packb(state.pack())) <= MAX_STATE_BYTES


def _largest() -> tuple[int, ...]:
    return (0xFFFF, 0xFFFF, 3, 255, 1 << 62, 0xFFFF, 1 << 62, 1 << 62)
