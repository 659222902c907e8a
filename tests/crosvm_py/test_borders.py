# SPDX-License-Identifier: BSD-3-Clause
"""Every border between processes: hostile input may end its sender, but nobody else.

Each reader gets every message that it knows with every value that msgpack has in every place, and
arrays and maps of any depth. It may refuse, and it may take what happens to be right; it must not
raise anything else, and it must go on. An error that nobody foresaw counts as a find, as for the
fuzzers (``tests/fuzz/unforeseen.py``).
"""

from __future__ import annotations

import ast
import os
import socket
from contextlib import suppress
from functools import cache
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, TypeGuard

import pytest

from crosvm_py.cli.commands import balloon_stats
from crosvm_py.cli.dispatch import execute
from crosvm_py.control import socket_client as client
from crosvm_py.control.socket_server import ControlServer
from crosvm_py.device_process import protocol as device_protocol
from crosvm_py.device_process.vsock_broker import Broker
from crosvm_py.file_parser import protocol as file_parser_protocol
from crosvm_py.file_parser.child import FileParser
from crosvm_py.requests.catalogue import REQUESTS, RESPONSES
from crosvm_py.requests.life import Resume
from crosvm_py.requests.protocol import Done
from crosvm_py.socket_path import bind_control_socket
from crosvm_py.vmm.kernel_parser import KernelParser
from crosvm_py.warden import protocol as warden_protocol
from crosvm_py.warden import warden as warden_module
from crosvm_py.warden.device import Device
from crosvm_py.warden.forge import ForgeProcess
from crosvm_py.warden.foundry import Foundry
from crosvm_py.warden.maker import Maker
from devices.virtio.commands import TellState
from devices.virtio.vsock.broker import BROKER_CODEC
from kernel_loader.source import FileSource
from sys_util.channel import Channel, socket_pair
from sys_util.errors import HostError, ProtocolError, VmmError, describe
from sys_util.event_loop import EventLoop
from sys_util.wire import encode
from tests.crosvm_py.fake_warden import FakeWarden
from tests.crosvm_py.hostile_device import READY, HostileDevice
from tests.fuzz.messages import CODECS, message_types
from tests.fuzz.unforeseen import unforeseen_errors_are_finds
from tests.support.strangers import DEPTHS, VALUES, deep, hostile_payloads

if TYPE_CHECKING:
    from collections.abc import Iterator

    from crosvm_py.requests.protocol import Response
    from sys_util.wire import Message

ROOT = Path(__file__).parents[2]
# Modules that read what others sent or left behind. They may print values only through ``brief``.
BORDERS = [
    *(ROOT / "sys_util" / name for name in ("channel.py", "stranger.py", "wire.py")),
    *sorted((ROOT / "devices" / "virtio").rglob("*.py")),
    *(
        path
        for name in (
            *("api", "control", "device_process", "file_parser", "operations", "pool", "relay"),
            *("requests", "vmm", "warden"),
        )
        for path in sorted((ROOT / "crosvm_py" / name).rglob("*.py"))
    ),
    ROOT / "kernel_loader" / "image.py",
]
SOURCES = [
    path
    for folder in ("sys_util", "devices", "disk", "crosvm_py", "jail", "seccomp", "kernel_loader")
    for path in sorted((ROOT / folder).rglob("*.py"))
]


@pytest.fixture(autouse=True)
def _finds(lines: list[str]) -> Iterator[None]:
    with unforeseen_errors_are_finds():
        yield


@cache
def decoded(name: str) -> tuple[list[Message], int]:
    """Decode every hostile payload of a codec; return what it took, and how many it refused."""
    taken: list[Message] = []
    refused = 0
    for payload in hostile_payloads(CODECS[name]):
        try:
            taken.append(CODECS[name].decode(payload))
        except ProtocolError:
            refused += 1
    return taken, refused


@pytest.mark.slow
@pytest.mark.parametrize("name", CODECS)
def test_codec_takes_or_refuses_every_value_in_every_place(name: str) -> None:
    answers, refused = decoded(name)
    taken = len(answers)
    # Each message in whole, at least; and what happens to be right is one value among many.
    assert taken + refused >= len(VALUES) * (1 + len(message_types(CODECS[name])))
    assert taken < (taken + refused) / 12
    assert taken > 0 or not any(kind.FIELDS for kind in message_types(CODECS[name]))


# A device process, for the vmm


@pytest.mark.slow
@pytest.mark.parametrize("is_ready", [True, False], ids=["ready", "fresh"])
def test_device_that_says_anything_ends_itself_alone(is_ready: bool) -> None:
    ended = count = 0
    for payload in hostile_payloads(device_protocol.VMM_CODEC, depths=DEPTHS[::4]):
        device = HostileDevice()
        if is_ready:
            device.send(READY)
            device.turn()
            device.host.command(TellState(), lambda _answer: None)
            if device.host.link is not None:
                device.host.link.describe(1.0, lambda _words: None)
        device.send_raw(payload)
        device.turn()
        assert device.failures == (not device.host.is_open)
        ended += device.failures
        count += 1
        device.close()
    assert ended > count / 2


# The process that reads the kernel, for the vmm


@pytest.mark.slow
def test_parser_that_says_anything_ends_the_start_alone(tmp_path: Path) -> None:
    path = tmp_path / "kernel"
    path.write_bytes(bytes(4096))
    refusals: list[str] = []
    for payload in islice(
        hostile_payloads(file_parser_protocol.CODEC, depths=DEPTHS[::4]), 0, None, 7
    ):
        ours, theirs = socket_pair()
        theirs.send(payload)
        theirs.close()
        pid = os.posix_spawn("/bin/true", ["true"], {})  # a fork of pytest takes much longer
        source = FileSource.open("kernel", str(path))
        parser = KernelParser(
            source,
            os.memfd_create("unpacked", os.MFD_ALLOW_SEALING),
            FileParser(source.what, Channel(ours, file_parser_protocol.CODEC), pid),
        )
        try:
            parser.image().close()
        except VmmError as error:
            refusals.append(describe(error))
        parser.close()
    assert len(refusals) > 100
    assert all(str(path) in words for words in refusals)


# The warden, for the vmm; and the vmm, for the warden


def test_warden_that_says_anything_ends_the_vm_in_order() -> None:
    few = [*VALUES.values(), *map(deep, DEPTHS[::4])]
    every = hostile_payloads(warden_protocol.VMM_CODEC, depths=(9, 1023))
    payloads = [*few, *islice(every, 0, None, 60)]
    ended = 0
    for payload in payloads:
        warden = FakeWarden()
        warden.spawn("rng")
        warden.send_raw(payload)
        ended += bool(warden.deaths)
        warden.close()
    assert ended > len(payloads) / 2


@pytest.mark.slow
def test_vmm_that_says_anything_ends_the_service_of_its_warden(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refuse(*_: object) -> socket.socket:
        raise HostError("clone", "nothing in a test")

    monkeypatch.setattr(Maker, "make", refuse)
    monkeypatch.setattr(Device, "remake", lambda *_: None)
    monkeypatch.setattr(Foundry, "renew", lambda *_: None)
    for payload in hostile_payloads(warden_protocol.WARDEN_CODEC, depths=DEPTHS[::4]):
        ours, theirs = socket_pair()
        forge, forges = socket_pair()
        process = ForgeProcess(forge, os.getpid(), os.pidfd_open(os.getpid()))
        channel = Channel(ours, warden_protocol.WARDEN_CODEC)
        warden = warden_module.Warden(channel, process, None, -1, None)
        theirs.setblocking(False)
        theirs.send(payload)
        with suppress(VmmError):
            warden._on_message(0)
        warden._loop.close()
        os.close(process.pidfd)
        for sock in (ours, theirs, forge, forges):
            sock.close()


class OrderedWarden:
    """A warden while the guest runs, with an opener of ours, and a vmm that may not read."""

    def __init__(self) -> None:
        ours, self.vmm = socket_pair()
        forge, self._forges = socket_pair()
        opener, theirs = socket_pair()
        self._process = ForgeProcess(forge, os.getpid(), os.pidfd_open(os.getpid()))
        channel = Channel(ours, warden_protocol.WARDEN_CODEC)
        self.warden = warden_module.Warden(channel, self._process, None, -1, None)
        self.warden.take_orders(theirs)
        self.warden._sealed = warden_protocol.Seal()
        self.opener = Channel(opener, warden_protocol.OPENER_CODEC)
        self.opener_sock = opener
        self._socks = (ours, self.vmm, forge, self._forges, opener, theirs)

    def serve(self) -> None:
        assert self.warden._orders is not None
        self.warden._orders._on_order()

    def close(self) -> None:
        self.warden._loop.close()
        os.close(self._process.pidfd)
        for sock in self._socks:
            sock.close()


@pytest.mark.slow
def test_opener_that_orders_anything_does_not_end_its_warden() -> None:
    ordered = OrderedWarden()
    for payload in hostile_payloads(warden_protocol.ORDERS_CODEC, depths=DEPTHS[::4]):
        ordered.opener_sock.send(payload)
        ordered.serve()
        while ordered.opener.receive() is not None:
            pass
        ordered.warden._devices.clear()
        with suppress(BlockingIOError):
            while ordered.vmm.recv(1 << 16, socket.MSG_DONTWAIT):
                pass
    ordered.close()


def test_device_that_the_vmm_cannot_be_told_of_is_refused_and_its_files_are_closed() -> None:
    ordered = OrderedWarden()
    order = warden_protocol.Add(7, "data", "rng", b"", 0)
    before = len(os.listdir("/proc/self/fd"))
    told = 0
    with open("/dev/null", "rb") as file:
        while (answer := ordered.opener.receive()) is None:
            ordered.opener.send(order, [file.fileno()])
            for device in ordered.warden._devices.values():
                device.close()
            ordered.warden._devices.clear()
            ordered.serve()
            told += 1
            assert told < 100_000
    assert "does not read" in str(answer[0])
    assert ordered.warden._devices == {}
    assert len(os.listdir("/proc/self/fd")) == before
    ordered.close()


# A device, for its broker


def test_device_that_asks_its_broker_anything_ends_it_and_itself() -> None:
    for payload in hostile_payloads(BROKER_CODEC, depths=DEPTHS[::4]):
        ours, theirs = socket_pair()
        broker = Broker(ours, b"/nowhere/v")
        theirs.send(payload)
        with suppress(VmmError):
            broker.serve()
        broker.channel.close()
        theirs.close()


# A control client, for the control process


@pytest.mark.slow
def test_client_that_says_anything_loses_its_connection_alone(tmp_path: Path) -> None:
    loop, bound = EventLoop(), bind_control_socket(str(tmp_path / "s"))
    server = ControlServer(loop, bound, lambda _request: Done())

    def ask(payload: bytes) -> bytes:
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as client:
            client.connect(bound.path)
            client.send(payload)
            for _ in range(4):
                loop.run_once(0)
            client.setblocking(False)
            return client.recv(65536)

    for payload in hostile_payloads(REQUESTS, depths=DEPTHS[::4]):
        ask(payload)
    assert ask(encode(Resume())) == encode(Done())
    server.close()
    bound.unlink()
    loop.close()


# The VM, for a client

COMMANDS = [
    "devices S",
    "devices --json S",
    "limit rng S",
    "balloon 1G S",
    "balloon_stats S",
    "disk resize 0 1000 S",
    "link net:0 up S",
    "stop S",
]


@pytest.fixture(scope="module")
def answers_of_vms() -> list[Response]:
    """Return every kind of answer that a VM may send."""
    (name,) = (name for name, codec in CODECS.items() if codec is RESPONSES)
    return decoded(name)[0]


@pytest.mark.parametrize("command", COMMANDS)
def test_vm_that_answers_anything_gets_one_line_from_its_client(
    command: str, answers_of_vms: list[Response], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(balloon_stats, "ANSWER_SECONDS", 0.0)
    said = answers_of_vms[:1]
    monkeypatch.setattr(client, "ask", lambda *_, **__: said[0])
    for said[0] in answers_of_vms:
        with suppress(VmmError):
            execute(command.split())


# Rules that keep this true


def test_sources_unpack_in_the_one_place() -> None:
    users = {path.name for path in SOURCES if uses(path, {"unpackb", "Unpacker", "loads"})}
    # The second has msgpack's functions for the first, and the third reads our own code. The last
    # is the one place for JSON.
    assert users == {"stranger.py", "msgpack.py", "bundle.py", "json_text.py"}


def test_sources_signal_eventfds_in_the_one_place() -> None:
    """Another process that shares an eventfd may have filled it; then a write of 1 fails."""
    assert {path.name for path in SOURCES if uses(path, {"eventfd_write"})} == {"eventfd.py"}


def test_sources_at_a_border_describe_by_brief() -> None:
    """``!r`` of a nested value recurses, and of any value it has no bound."""
    assert [place for path in BORDERS for place in descriptions(path)] == []


def descriptions(path: Path) -> Iterator[str]:
    """Name each line that describes what may be a stranger's value."""
    for node in filter(is_expression, ast.walk(tree(path))):
        if isinstance(node, ast.FormattedValue) and node.conversion == ord("r"):
            described = not (isinstance(node.value, ast.Name) and node.value.id.isupper())
        else:
            described = isinstance(node, ast.Constant) and "%r" in str(node.value)
        if described:
            yield f"{path.relative_to(ROOT)}:{node.lineno}"


def is_expression(node: ast.AST) -> TypeGuard[ast.expr]:
    return isinstance(node, ast.expr)


def uses(path: Path, wanted: set[str]) -> bool:
    """Return whether a module uses one of these names; only one with the word in it is parsed."""
    text = path.read_text()
    return any(word in text for word in wanted) and bool(names(path) & wanted)


def names(path: Path) -> set[str]:
    """Return the attributes that a module uses, and what it imports from others."""
    nodes = list(ast.walk(tree(path)))
    imported = [node for node in nodes if isinstance(node, ast.ImportFrom)]
    used = {node.attr for node in nodes if isinstance(node, ast.Attribute)}
    return used | {alias.name for node in imported for alias in node.names}


@cache
def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text())
