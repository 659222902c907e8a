# SPDX-License-Identifier: BSD-3-Clause
"""The broker of a vsock device: which sockets it reaches, and hostile requests of a device."""

from __future__ import annotations

import array
import errno
import os
import select
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import msgpack
import pytest

from crosvm_py.device_process import vsock_broker
from crosvm_py.device_process.vsock_broker import BURST, CONNECTS_PER_SECOND, Broker
from crosvm_py.socket_path import SocketUse, bind_control_socket, bind_socket
from devices.virtio.vsock.broker import DEVICE_CODEC, Connect, Connected, NotConnected
from sys_util import socket as light_socket
from sys_util.channel import Channel, socket_pair
from sys_util.errors import ChannelClosed, ProtocolError
from sys_util.wire import Message, encode

pytestmark = pytest.mark.usefixtures("steady_fds")

PORT = 52
CONNECT = [Connect.TYPE, PORT, False]

Listen = Callable[..., socket.socket]


@pytest.fixture
def listen(tmp_path: Path) -> Iterator[Listen]:
    """Return what makes listeners at ``v_<port>``."""
    made: list[socket.socket] = []

    def call(
        name: str = f"v_{PORT}", kind: int = socket.SOCK_STREAM, backlog: int = 8
    ) -> socket.socket:
        sock = socket.socket(socket.AF_UNIX, kind | socket.SOCK_NONBLOCK)
        made.append(sock)
        sock.bind(str(tmp_path / name))
        sock.listen(backlog)
        return sock

    yield call
    for sock in made:
        sock.close()


class Device:
    """The device's end, and a broker that answers when it is told to."""

    def __init__(self, folder: Path) -> None:
        ours, theirs = socket_pair()
        self.sock = ours
        self.channel = Channel(ours, DEVICE_CODEC)
        self.broker = Broker(theirs, bytes(folder / "v"))

    def send(self, *message: object) -> None:
        self.sock.send(msgpack.packb(message))

    def ask(self, port: int = PORT, *, for_messages: bool = False) -> tuple[Message, list[int]]:
        self.channel.send(Connect(port, for_messages))
        assert self.broker.serve()
        answer = self.channel.receive()
        assert answer is not None
        return answer

    def close(self) -> None:
        self.channel.close()
        self.broker.channel.close()


@pytest.fixture
def device(tmp_path: Path) -> Iterator[Device]:
    device = Device(tmp_path)
    yield device
    device.close()


# What it reaches


@pytest.mark.parametrize(
    ("kind", "for_messages"), [(socket.SOCK_STREAM, False), (socket.SOCK_SEQPACKET, True)]
)
@pytest.mark.parametrize("port", [0, 1, PORT, 0xFFFF_FFFF])
def test_listener_of_the_port_is_connected_to(
    device: Device, listen: Listen, port: int, kind: int, for_messages: bool
) -> None:
    listener = listen(f"v_{port}", kind)
    message, (fd,) = device.ask(port, for_messages=for_messages)
    assert message == Connected()
    with socket.socket(fileno=fd) as sock, listener.accept()[0] as peer:
        assert not os.get_blocking(fd)
        assert not os.get_inheritable(fd)
        sock.send(b"hello")
        assert peer.recv(10) == b"hello"


def test_socket_that_the_kernel_does_not_pass_on_is_a_refusal(
    device: Device, listen: Listen, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A device that takes no answers has as many descriptors under way as its user may have."""
    listen()

    def sendmsg(*_: object) -> int:
        raise OSError(errno.ETOOMANYREFS, "too many references")

    monkeypatch.setattr(light_socket.socket, "sendmsg", sendmsg)
    assert device.ask() == (NotConnected(errno.ETOOMANYREFS), [])


def stale(listen: Listen, _folder: Path) -> None:
    listen().close()


def other_type(listen: Listen, _folder: Path) -> None:
    listen(kind=socket.SOCK_SEQPACKET)


def full(listen: Listen, folder: Path) -> None:
    listen(backlog=0)
    with socket.socket(socket.AF_UNIX) as first:
        first.connect(str(folder / f"v_{PORT}"))


def entrance(_listen: Listen, folder: Path) -> None:
    bind_socket(str(folder / f"v_{PORT}"), SocketUse("--vsock", socket.SOCK_STREAM)).close()


def live_entrance(_listen: Listen, folder: Path) -> None:
    bound = bind_socket(str(folder / f"v_{PORT}"), SocketUse("--vsock", socket.SOCK_STREAM))
    SOCKETS.append(bound.sock)


def control_socket(_listen: Listen, folder: Path) -> None:
    SOCKETS.append(bind_control_socket(str(folder / f"v_{PORT}")).sock)


def link_beside(listen: Listen, folder: Path) -> None:
    listen("agent")
    (folder / f"v_{PORT}").symlink_to("agent")


def link_to_a_vm(_listen: Listen, folder: Path) -> None:
    SOCKETS.append(bind_control_socket(str(folder / "control")).sock)
    (folder / f"v_{PORT}").symlink_to("control")


def link_to_nothing(_listen: Listen, folder: Path) -> None:
    (folder / f"v_{PORT}").symlink_to("/no/such")


SOCKETS: list[socket.socket] = []  # whose files the tests' folder takes along


@pytest.fixture(autouse=True)
def _close_sockets() -> Iterator[None]:
    yield
    while SOCKETS:
        SOCKETS.pop().close()


@pytest.mark.parametrize(
    ("prepare", "error"),
    [
        pytest.param(lambda _listen, _folder: None, errno.ENOENT, id="nothing"),
        pytest.param(
            lambda _listen, folder: (folder / f"v_{PORT}").touch(), errno.ECONNREFUSED, id="file"
        ),
        pytest.param(
            lambda _listen, folder: (folder / f"v_{PORT}").mkdir(), errno.ECONNREFUSED, id="folder"
        ),
        pytest.param(stale, errno.ECONNREFUSED, id="stale"),
        pytest.param(other_type, errno.EPROTOTYPE, id="other-type"),
        pytest.param(full, errno.EAGAIN, id="full-backlog"),
        pytest.param(entrance, errno.EADDRINUSE, id="entrance-of-a-vm-that-has-gone"),
        pytest.param(live_entrance, errno.EADDRINUSE, id="entrance-of-a-vm"),
        pytest.param(control_socket, errno.EADDRINUSE, id="control-socket"),
        pytest.param(link_beside, errno.ELOOP, id="link-to-a-socket-beside"),
        pytest.param(link_to_a_vm, errno.ELOOP, id="link-to-a-control-socket"),
        pytest.param(link_to_nothing, errno.ELOOP, id="link-to-nothing"),
    ],
)
def test_what_is_no_listener_for_the_guest_is_refused(
    device: Device, listen: Listen, tmp_path: Path, prepare: Callable[..., None], error: int
) -> None:
    prepare(listen, tmp_path)
    assert device.ask() == (NotConnected(error), [])


def test_listener_that_is_not_for_its_user_is_refused(device: Device, listen: Listen) -> None:
    listen()
    path = Path(os.fsdecode(device.broker._path + b"_%d" % PORT))
    path.chmod(0)
    uid = os.geteuid()
    if uid == 0:  # root may connect to anything
        os.seteuid(65534)
    try:
        refusal = device.ask()
    finally:
        os.seteuid(uid)
    assert refusal == (NotConnected(errno.EACCES), [])


def test_nothing_is_left_open(device: Device, listen: Listen) -> None:
    listener = listen(backlog=64)
    before = os.listdir("/proc/self/fd")
    for port in (PORT, PORT, 1, 2):
        for fd in device.ask(port)[1]:
            os.close(fd)
    while select.select([listener], [], [], 0)[0]:
        listener.accept()[0].close()
    assert os.listdir("/proc/self/fd") == before


# What a device may send


def nested(depth: int) -> object:
    return [] if not depth else [nested(depth - 1)]


VALUES: dict[str, object] = {
    "nil": None,
    "true": True,
    "float": 52.0,
    "text": "52",
    "name": "../../control",
    "bytes": b"52",
    "array": [52],
    "map": {"port": 52},
    "deep": nested(60),
}

HOSTILE: dict[str, bytes] = {
    "empty": b"",
    "no-msgpack": b"\xc1",
    "text": b"CONNECT 52\n",
    "cut-off": encode(Connect(PORT, False))[:-1],
    "and-more": encode(Connect(PORT, False)) + b"\0",
    "array-of-nothing": msgpack.packb([]),
    "too-few": msgpack.packb(CONNECT[:2]),
    "too-many": msgpack.packb([*CONNECT, 0]),
    "answer": encode(Connected()),
    "unknown-type": msgpack.packb([2, PORT, False]),
    "type-of-a-device-message": msgpack.packb([33, 1]),
    "long": msgpack.packb([*CONNECT[:2], b"x" * 60_000]),
    "longer-than-any": bytes(80_000),
    "port-of-33-bits": msgpack.packb([Connect.TYPE, 1 << 32, False]),
    "port-of-64-bits": msgpack.packb([Connect.TYPE, (1 << 64) - 1, False]),
    "negative-port": msgpack.packb([Connect.TYPE, -1, False]),
    **{
        f"{name}-as-{field}": msgpack.packb([*CONNECT[:at], value, *CONNECT[at + 1 :]])
        for name, value in VALUES.items()
        for at, field in enumerate(("type", "port", "kind"))
        if (name, field) != ("true", "kind")
    },
    "number-as-kind": msgpack.packb([Connect.TYPE, PORT, 1]),
}


@pytest.mark.parametrize("payload", [pytest.param(one, id=name) for name, one in HOSTILE.items()])
def test_what_is_no_question_ends_the_broker_and_gets_nothing(
    device: Device, listen: Listen, payload: bytes
) -> None:
    listener = listen()
    device.sock.send(payload)
    with pytest.raises((ProtocolError, ChannelClosed)):  # a message of no bytes is the end
        device.broker.serve()
    assert device.channel.receive() is None
    assert not select.select([listener], [], [], 0)[0]


@pytest.mark.parametrize("payload", [encode(Connect(PORT, False)), b"\xc1", b""])
@pytest.mark.parametrize("count", [1, 2, 200])
def test_descriptors_of_the_device_are_closed(
    device: Device, listen: Listen, payload: bytes, count: int
) -> None:
    listener = listen()
    before = os.listdir("/proc/self/fd")
    rights = array.array("i", [listener.fileno()] * count)
    device.sock.sendmsg([payload], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, rights)])
    with pytest.raises(ProtocolError):
        device.broker.serve()
    assert os.listdir("/proc/self/fd") == before
    assert not select.select([listener], [], [], 0)[0]


def test_answers_that_nobody_reads_are_few(device: Device, listen: Listen) -> None:
    """Their descriptors count against all processes of the user."""
    listen(backlog=1000)
    answers = 0
    while select.select([], [device.broker.channel], [], 0)[1]:
        device.channel.send(Connect(PORT, False))
        assert device.broker.serve()
        answers += 1
    assert 4 < answers < 32
    for _ in range(answers):
        answer = device.channel.receive()
        assert answer is not None
        os.close(answer[1][0])


def test_questions_are_answered_at_a_bounded_pace(
    device: Device, monkeypatch: pytest.MonkeyPatch
) -> None:
    slept: list[float] = []
    monkeypatch.setattr(vsock_broker, "BURST", 3)
    monkeypatch.setattr(time, "monotonic", lambda: 1000.0)
    monkeypatch.setattr(time, "sleep", slept.append)
    for _ in range(5):
        device.ask()
    assert slept == [pytest.approx(count / CONNECTS_PER_SECOND) for count in (1, 2)]


def test_pace_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    now, slept = 1000.0, 0.0

    def sleep(seconds: float) -> None:
        nonlocal now, slept
        now += seconds
        slept += seconds

    monkeypatch.setattr(time, "monotonic", lambda: now)
    monkeypatch.setattr(time, "sleep", sleep)
    pace = vsock_broker._Pace()
    for _ in range(BURST):
        pace.wait()
    assert slept == 0
    for _ in range(CONNECTS_PER_SECOND):
        pace.wait()
    assert slept == pytest.approx(1, rel=0.01)
    now += 10
    slept = 0
    for _ in range(BURST):
        pace.wait()
    assert slept == 0
