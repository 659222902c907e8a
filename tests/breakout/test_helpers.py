# SPDX-License-Identifier: BSD-3-Clause
"""Nothing gets out of the vmm's helpers: reader of kernels, relay, control process, opener."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from contextlib import closing, contextmanager
from types import SimpleNamespace
from typing import TYPE_CHECKING, Final

import pytest

from crosvm_py.api.store import make_store
from crosvm_py.control import keeper
from crosvm_py.control import process as control_process
from crosvm_py.control.protocol import ControlFds
from crosvm_py.opener import process as opener_process
from crosvm_py.relay import process as relay_process
from crosvm_py.relay.outlet import open_outlet
from crosvm_py.socket_path import bind_control_socket
from crosvm_py.vmm.control_proxy import start_keeper
from crosvm_py.vmm.kernel_parser import start_kernel_parser
from crosvm_py.vmm.relay import start_relay
from jail.control import confine_keeper
from seccomp import load_policy
from sys_util import linux
from sys_util.errors import VmmError
from sys_util.event_loop import EventLoop
from tests.breakout import hands, limits
from tests.breakout.attempt import Cell
from tests.breakout.inmate import filters_left_out, outcome
from tests.breakout.prison import World, allowed_ioctls
from tests.breakout.table import ATTEMPTS
from tests.crosvm_py.device_rig import room_for_what_tests_have
from tests.crosvm_py.test_opener import children
from tests.kernel_loader.images import Elf, write
from tests.support.command_line import config_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from crosvm_py.relay.outlet import Outlet
    from kernel_loader.source import FileSource

    Outcomes = dict[str, list[object]]

pytestmark = pytest.mark.usefixtures("lines")

# They have no guest memory, and their share of the host is another one than a device's.
TRIED: Final = [
    attempt
    for attempt in ATTEMPTS
    if attempt.is_for("rng")
    and not attempt.alone
    and attempt.group not in (limits.MEMORY, limits.SHARE)
]
WALLED: Final = ("files", "network", "processes", "programs")
# What only looks at names and numbers, and two calls whose success says nothing: kill(2) of
# everybody where there is nobody whom it may signal, and who shall get signals of a socket, which
# are sent with the rights of whoever asked.
LOOKS: Final = (
    *("take a file handle", "stat", "test access", "read a link", "read an attribute"),
    *("ask for the", "move to another processor", "signal everybody", "have the kernel signal"),
)
# What the control process may do to its own descriptors: ask whose client it is, and not wait.
FOR_CLIENTS: Final = {
    *("read an option of each socket", "change a descriptor", "every number without a size"),
}
# What the opener is there for: it opens the files of its user, in children, asks what they are,
# binds the sockets of a vsock, and keeps to more rules of Landlock.
FOR_CLIENTS_FILES: Final = ("open /", "open ../", "stat", "test access", "read a link", "list ")
FOR_THE_WARDEN: Final = {
    *("size of each descriptor", "have the kernel signal by each descriptor", "clone"),
    *("give a socket a name", "join a landlock"),
}
# SIOC[GS]IFFLAGS, SIOC[GS]IFMTU, SIOCGIFINDEX, SIOCSIFADDR, SIOCSIFNETMASK: of a TAP that it opens;
# FIOCLEX.
OF_INTERFACES: Final = (0x8913, 0x8914, 0x8921, 0x8922, 0x8933, 0x8916, 0x891C, 0x5451)
PATIENCE_SECONDS: Final = 60.0
_MESSAGES: Final = 50
_END: Final = b"\0"
SEND: Final = socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL


class Outside:
    """What is around the helper, and which it must not reach."""

    def __init__(self, folder: Path, bystander: int) -> None:
        self._world = World(folder, sweep_step=3)
        someone = SimpleNamespace(pid=bystander)
        about = SimpleNamespace(rig=SimpleNamespace(warden=someone), sibling=someone)
        self._fields = self._world.fields(about, "rng")  # type: ignore[arg-type]  # all it needs

    def try_all(self, channel: int, files: Sequence[int], policy: str = "rng_device") -> bytes:
        """Make every attempt, in the helper; return what became of each.

        Requests that its ``policy`` lets pass are its business, and no attempt.
        """
        asked = [*allowed_ioctls(policy), *(OF_INTERFACES if policy == "opener" else ())]
        facts = self._fields | {"allowed_ioctls": sorted(asked)}
        cell = Cell(
            kind="rng",
            channel=channel,
            memory=files[-1],
            guest_at=0,
            files=tuple(files),
            fds=(*files, channel),
            **facts,  # type: ignore[arg-type]  # of a world's
        )
        return json.dumps({one.name: outcome(one, cell) for one in TRIED}).encode()

    def close(self) -> None:
        self._world.close()


@pytest.fixture
def outside(tmp_path: Path) -> Iterator[Outside]:
    with bystander() as pid, closing(Outside(tmp_path, pid)) as outside:
        yield outside


@contextmanager
def bystander() -> Iterator[int]:
    """A process of the same user, which must live on."""
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        yield process.pid
        assert process.poll() is None
        process.kill()


def from_the_parser(folder: Path, monkeypatch: pytest.MonkeyPatch, outside: Outside) -> Outcomes:
    """Have code in the process that reads a kernel make every attempt."""
    sockets: list[int] = []

    def arm(fd: int, _head: bytes) -> None:
        hands.arm()
        sockets.append(fd)

    def act(source: FileSource, unpacked_fd: int) -> None:
        found = outside.try_all(sockets[0], (source.fd, unpacked_fd))
        os.pwrite(unpacked_fd, found, 0)
        os._exit(0)

    monkeypatch.setattr(linux, "report_denied_calls", arm)
    monkeypatch.setattr("kernel_loader.parse.parse_kernel", act)
    with closing(start_kernel_parser(config_of(write(folder, Elf().build())))) as parser:
        results = os.dup(parser._unpacked_fd)
        os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOWAIT)
        with pytest.raises(VmmError):  # for what it says, or for saying nothing
            parser.image()
    with open(results, "rb") as file:
        file.seek(0)
        return _read(file.read())


def from_the_relay(_folder: Path, monkeypatch: pytest.MonkeyPatch, outside: Outside) -> Outcomes:
    """Have code in the relay make every attempt."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    aside, results = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)

    def act(outlets: Sequence[Outlet], confine: Callable[[set[int]], None]) -> None:
        (outlet,) = outlets
        with socket.socket(fileno=outlet.socket_fd):
            hands.arm()
            confine({outlet.pipe_fd, outlet.socket_fd, results.fileno()})
            found = outside.try_all(outlet.socket_fd, (outlet.pipe_fd,))
            while found:
                found = found[results.send(found, SEND) :]
            os._exit(0)

    monkeypatch.setattr(relay_process, "run_relay", act)
    for sock in (aside, results):
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
    write_fd, outlet = open_outlet(theirs.detach(), 1024)
    relay = start_relay([outlet], sandbox=True)
    with ours, aside:
        results.close()
        found = b"".join(iter(lambda: aside.recv(1 << 16), b""))
        relay.end()
    os.close(write_fd)
    return _read(found)


def from_the_control_process(
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    outside: Outside,
    *,
    serves_api: bool = False,
) -> Outcomes:
    """Have code in the control process make every attempt."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    bound = bind_control_socket(str(folder / "clients"))
    policy = os.memfd_create("policy")
    os.write(policy, load_policy("control_api" if serves_api else "control").bpf)
    api, store = (os.dup(bound.sock.fileno()), make_store()) if serves_api else (-1, -1)

    class Taken(EventLoop):
        def run(self) -> None:
            found = outside.try_all(theirs.fileno(), (bound.sock.fileno(),))
            for at in range(0, len(found), 1 << 15):
                theirs.send(found[at : at + (1 << 15)], socket.MSG_NOSIGNAL)
            os._exit(0)

    monkeypatch.setattr(control_process, "EventLoop", Taken)
    monkeypatch.setattr(linux, "report_denied_calls", lambda _fd, _head: hands.arm())
    pid = os.fork()
    if not pid:
        try:
            confine_keeper()
            theirs = socket.socket(fileno=theirs.detach())
            fds = ControlFds(
                os.dup(theirs.fileno()), bound.sock.fileno(), policy, api=api, store=store, boots=1
            )
            linux.close_all_fds_except({*fds.used(), theirs.fileno(), 0, 1, 2})
            control_process.be_control(fds.as_word(), os.getppid())
        finally:
            os._exit(1)
    theirs.close()
    with ours, bound.sock:
        found = b"".join(iter(lambda: ours.recv(1 << 16), b""))
        os.waitpid(pid, 0)
    for fd in (policy, api, store):
        if fd >= 0:
            os.close(fd)
    return _read(found)


def from_the_control_process_with_an_api(
    folder: Path, monkeypatch: pytest.MonkeyPatch, outside: Outside
) -> Outcomes:
    """Have code make every attempt in a control process whose clients create the VM."""
    return from_the_control_process(folder, monkeypatch, outside, serves_api=True)


def from_the_opener(_folder: Path, monkeypatch: pytest.MonkeyPatch, outside: Outside) -> Outcomes:
    """Have code in the opener make every attempt."""
    orders, wardens = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)

    class Taken(opener_process._Opener):
        def run(self) -> None:
            channel = self._control.fileno()
            found = outside.try_all(channel, (self._warden.fileno(),), "opener") + _END
            for at in range(0, len(found), 1 << 15):
                os.write(channel, found[at : at + (1 << 15)])
            os._exit(0)

    monkeypatch.setattr(opener_process, "_Opener", Taken)
    monkeypatch.setattr(linux, "report_denied_calls", lambda _fd, _head: hands.arm())
    allowed_ioctls("opener")  # in the jail no policy is compiled
    before = children()
    with orders, wardens, room_for_what_tests_have():
        ours = opener_process.start_opener(orders.fileno(), load_policy("opener"), sibling=False)
    (pid,) = children() - before
    found = b""
    with ours:
        ours.settimeout(PATIENCE_SECONDS)
        # A message without bytes may be an attempt. A child that was made tells the rest, too.
        for _ in range(_MESSAGES):
            found += ours.recv(1 << 16)
        os.waitpid(pid, 0)
    return _read(max(found.split(_END), key=lambda told: b'"clone": ["out"]' in told))


# A control process whose opener was taken over: a child makes a child and ends, again and again, so
# that no process number is one to signal. It says when it has begun, and at its end, if it has one.
_FLEEING: Final = """
import os, sys
sys.path[:] = sys.argv[3:]
from crosvm_py.control.protocol import ControlFds
from crosvm_py.opener import process
from seccomp import load_policy
from sys_util import linux

class Taken(process._Opener):
    def run(self):
        orders = self._warden.fileno()
        for at in range(50000):
            if linux.clone(0):
                os._exit(0)
            if at == 2:
                os.write(orders, b"begun")
        os.write(orders, b"outlived")
        os._exit(0)

process._Opener = Taken
given = ControlFds.read(sys.argv[1])
opener = process.start_opener(given.orders, load_policy("opener"))
os.read(given.channel, 1)
"""


def test_what_an_opener_makes_ends_with_the_vm(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keeper, "BOOT", _FLEEING)
    orders, wardens = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    wardens.settimeout(PATIENCE_SECONDS)
    with wardens:
        with orders:
            made = start_keeper(ControlFds(orders=orders.fileno()), (None, None), ())
        assert wardens.recv(16) == b"begun"
        made.end()
        assert wardens.recv(16) == b""


def _read(data: bytes) -> Outcomes:
    found: Outcomes = json.loads(data)
    assert len(found) > 150
    return found


@pytest.mark.parametrize(
    "attempts_of",
    [
        from_the_parser,
        from_the_relay,
        from_the_control_process,
        from_the_control_process_with_an_api,
        from_the_opener,
    ],
)
def test_every_attempt_is_stopped(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    outside: Outside,
    attempts_of: Callable[[Path, pytest.MonkeyPatch, Outside], Outcomes],
) -> None:
    found = attempts_of(tmp_path, monkeypatch, outside)
    out = {name for name, became in found.items() if became == ["out"]}
    if attempts_of is from_the_opener:
        out = {name for name in out if not name.startswith(FOR_CLIENTS_FILES)} - FOR_THE_WARDEN
    serves = attempts_of in (from_the_control_process, from_the_control_process_with_an_api)
    assert out == (FOR_CLIENTS if serves else set())


@pytest.mark.skipif(os.geteuid() != 0, reason="an ordinary user stays who he is")
def test_jail_of_the_parser_stops_what_reaches_others_where_its_filter_is_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, outside: Outside
) -> None:
    """Namespaces, of which it has none of its own, are for the filter alone."""
    with filters_left_out():
        found = from_the_parser(tmp_path, monkeypatch, outside)
    walled = [one for one in TRIED if one.group in WALLED and one.has_jail("rng")]
    out = {one.name for one in walled if found[one.name] == ["out"]}
    assert {name for name in out if not name.startswith(LOOKS)} == set()
