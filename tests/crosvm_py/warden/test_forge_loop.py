# SPDX-License-Identifier: BSD-3-Clause
"""The loop of the forge, in Python and in Rust: what it executes, and what it says if it cannot."""

from __future__ import annotations

import array
import ast
import os
import platform
import struct
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Final, cast

import pytest

from crosvm_py.exit_status import EXIT_HOST
from crosvm_py.warden import forge
from crosvm_py.warden.forge_protocol import (
    FROM_FORGE_CODEC,
    FROM_MOULD_CODEC,
    Begun,
    Execute,
    Failed,
    ForgeDenied,
)
from seccomp import Policy
from sys_util import linux, socket
from sys_util.channel import socket_pair
from sys_util.wire import encode
from tests.support.layout import anonymous_kib

if TYPE_CHECKING:
    from typing import Self

    from crosvm_py.kinds.policies import RunPolicies
    from sys_util.wire import Codec, Message

PYTHON: Final = ""
CLONE: Final = 56 if platform.machine() == "x86_64" else 220

# Tells its words, its environment and its descriptors.
MOULD: Final = """
import os, sys
fds = [int(name) for name in os.listdir("/proc/self/fd")]
os.write(int(sys.argv[1]), repr((sys.argv[2:], open("/proc/self/environ").read(), fds)).encode())
"""


def trap(number: int) -> RunPolicies:
    """Return policies whose forge is denied one system call, and nothing else."""
    rows = [(0x20, 0, 0, 0), (0x15, 0, 1, number), (0x06, 0, 0, 0x30000), (0x06, 0, 0, 0x7FFF0000)]
    bpf = b"".join(struct.pack("=HBBI", *row) for row in rows)
    return cast("RunPolicies", SimpleNamespace(forge=Policy("forge", "", bpf)))


class Rig:
    """A forge whose parent, and that of its moulds, is this process."""

    def __init__(
        self, file: str, program: str = "/proc/self/exe", policies: RunPolicies | None = None
    ) -> None:
        self.program_fd = os.open(program, os.O_PATH | os.O_CLOEXEC)
        self.loop_fd = -1 if file == PYTHON else os.open(file, os.O_PATH | os.O_CLOEXEC)
        self.out, out = os.pipe()
        self.sock, theirs = socket_pair()
        self.fds = forge.MouldFds(theirs.fileno(), out, -1, -1)
        words = ("python3", "-I", "-S", "-c", MOULD, str(out), "a b")
        self.pid = os.fork()
        if self.pid == 0:
            loop = forge._Program(self.program_fd, words, self.loop_fd)
            forge._be_forge(theirs, loop, self.fds, policies)
        theirs.close()
        os.close(out)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.sock.close()
        for fd in {self.program_fd, self.loop_fd, self.out} - {-1}:
            os.close(fd)
        if self.pid:
            self.wait()

    def wait(self) -> int:
        """Return the forge's status."""
        pid, self.pid = self.pid, 0
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])

    def mould(self) -> list[Message]:
        """Order a mould; return what comes through its channel, and reap it."""
        ours, theirs = socket_pair()
        with theirs:
            right = array.array("i", [theirs.fileno()]).tobytes()
            rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, right)]
            self.sock.sendmsg([encode(Execute())], rights)
        with ours:
            found = messages(ours, FROM_MOULD_CODEC)
        for message in found:
            if isinstance(message, Begun):
                os.waitpid(message.pid, 0)
        return found


def messages(sock: socket.socket, codec: Codec) -> list[Message]:
    """Return the messages until the end."""
    sock.settimeout(30)
    return [codec.decode(data) for data in iter(lambda: sock.recv(1000), b"")]


@pytest.fixture(
    params=[
        PYTHON,
        pytest.param(
            forge.LOOP,
            marks=pytest.mark.skipif(not Path(forge.LOOP).exists(), reason="built without cargo"),
        ),
    ],
    ids=["python", "rust"],
)
def file(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.mark.parametrize(
    ("interpreter", "module", "folder"),
    [
        ("/srv/venv/bin/python3", "/srv/venv/lib/python3.11/site-packages/x.py", "/srv/venv/bin"),
        ("/usr/local/venv/bin/python3", "/usr/local/venv/lib/x.py", "/usr/local/venv/bin"),
        ("/usr/bin/python3", "/usr/local/lib/python3.11/dist-packages/x.py", "/usr/local/bin"),
        ("/usr/bin/python3", "/home/user/checkout/x.py", "/usr/bin"),  # no other version's
    ],
)
def test_loop_is_beside_the_program(interpreter: str, module: str, folder: str) -> None:
    assert forge.loop_path(interpreter, module) == f"{folder}/crosvm-forge"


def test_mould_has_its_words_its_descriptors_and_no_environment(file: str) -> None:
    with Rig(file) as rig:
        for _ in range(2):
            (begun,) = rig.mould()
            assert isinstance(begun, Begun)
            words, environment, fds = ast.literal_eval(os.read(rig.out, 1000).decode())
            assert (words, environment) == (["a b"], "")
            assert {*rig.fds} - {-1} <= {*fds}
            assert rig.program_fd not in fds
        rig.sock.close()
        assert rig.wait() == 0


def test_program_that_cannot_be_executed_is_said_to_be(file: str) -> None:
    with Rig(file, "/etc/passwd") as rig:
        begun, failed = rig.mould()
    assert isinstance(begun, Begun)
    assert failed == Failed("execute the interpreter: Permission denied")


def test_loop_that_cannot_be_executed_is_done_by_python() -> None:
    with Rig("/etc/passwd") as rig:
        assert len(rig.mould()) == 1
        assert rig.program_fd not in ast.literal_eval(os.read(rig.out, 1000).decode())[2]


@pytest.mark.root
def test_call_that_the_forge_is_denied_is_named(file: str) -> None:
    with Rig(file, policies=trap(CLONE)) as rig:
        assert rig.mould() == []
        assert messages(rig.sock, FROM_FORGE_CODEC) == [ForgeDenied(CLONE)]
        assert rig.wait() == linux.EXIT_DENIED


@pytest.mark.parametrize(
    ("data", "fds"), [(b"", [0]), (b"\x91\x01", []), (b"\x91\x02", [0]), (b"\x91\x01\x00", [0])]
)
def test_nonsense_ends_it(file: str, data: bytes, fds: list[int]) -> None:
    with Rig(file) as rig:
        right = array.array("i", fds).tobytes()
        rig.sock.sendmsg([data], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, right)])
        assert rig.wait() == EXIT_HOST


@pytest.mark.skipif(not Path(forge.LOOP).exists(), reason="built without cargo")
def test_rust_keeps_nothing_of_python() -> None:
    with Rig(forge.LOOP) as rig:
        rig.mould()  # so it is executed by now
        assert Path(f"/proc/{rig.pid}/comm").read_text() == "crosvm-forge\n"
        assert anonymous_kib(rig.pid) < 256
