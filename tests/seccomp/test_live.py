# SPDX-License-Identifier: BSD-3-Clause
"""A process under the shipped filters: what a device needs works, and other calls do not."""

from __future__ import annotations

import mmap
import os
import select
import socket
import time
from typing import TYPE_CHECKING, Final

import pytest

from seccomp import load_policy, syscall_name
from sys_util import linux
from sys_util.event_loop import EventLoop

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

DONE: Final = 42
HEAD: Final = b"denied"
KEEP_AND_PUNCH: Final = 3
ZERO: Final = 0x10


def denied_call(policy: str, action: Callable[[], object], *, seconds: float = 30) -> str | None:
    """Run ``action`` in a process under ``policy``; return the call that was denied."""
    bpf = load_policy(policy).bpf
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            linux.prctl(linux.PR_SET_NO_NEW_PRIVS, 1)
            linux.report_denied_calls(theirs.fileno(), HEAD)
            linux.load_seccomp_filter(bpf)
            action()
            status = DONE
        finally:
            os._exit(status)
    theirs.close()
    with ours:
        ours.settimeout(seconds)
        report = ours.recv(64)
    _, status = os.waitpid(pid, 0)
    if report:
        assert report.startswith(HEAD)
        return syscall_name(int.from_bytes(report[-4:], "big"))
    assert os.waitstatus_to_exitcode(status) == DONE
    return None


@pytest.mark.parametrize("policy", ["block_device", "rng_device"])
def test_device_loop_and_channel_work(policy: str) -> None:
    loop = EventLoop()
    left, right = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    kick, extra = os.eventfd(0, os.EFD_NONBLOCK), os.eventfd(0, os.EFD_NONBLOCK)
    seen: list[int] = []

    socket.send_fds(left, [b"queue"], [extra])

    def serve() -> None:
        loop.add(kick, seen.append)
        os.eventfd_write(kick, 1)
        loop.run_once(1.0)
        os.eventfd_read(kick)
        loop.modify(kick, select.EPOLLIN)
        right.send(b"done", socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)
        _, fds, _, _ = socket.recv_fds(right, 64, 4, socket.MSG_CMSG_CLOEXEC)
        loop.remove(kick)
        os.close(fds[0])
        time.monotonic()
        time.time()
        if not seen:
            os._exit(1)

    assert denied_call(policy, serve) is None
    left.close()
    right.close()
    loop.close()
    os.close(kick)
    os.close(extra)


def test_allocations_of_every_size_work() -> None:
    def allocate() -> None:
        kept = [bytearray(size) for size in (1, 4000, 300_000, 5_000_000)]
        for buffer in kept:
            buffer += bytes(6_000_000)
        kept.clear()
        objects = [object() for _ in range(200_000)]
        del objects

    assert denied_call("rng_device", allocate) is None


def test_block_requests_work(tmp_path: Path) -> None:
    fd = os.open(tmp_path / "disk.img", os.O_RDWR | os.O_CREAT, 0o600)
    os.ftruncate(fd, 1 << 20)

    def serve() -> None:
        os.pwritev(fd, [b"x" * 4096], 0, 0)
        os.pwritev(fd, [b"y" * 4096], 4096, os.RWF_DSYNC)
        os.preadv(fd, [bytearray(4096)], 0)
        os.fdatasync(fd)
        linux.fallocate(fd, KEEP_AND_PUNCH, 0, 4096)
        try:
            linux.fallocate(fd, ZERO, 4096, 4096)
        except OSError:
            return  # tmpfs has no zero range; the filter let the call through

    assert denied_call("block_device", serve) is None
    os.close(fd)


def test_forgotten_import_is_an_import_error() -> None:
    def forget() -> None:
        try:
            __import__("crosvm_py.no_such_module")
        except ImportError:
            return
        os._exit(1)

    assert denied_call("rng_device", forget) is None


@pytest.mark.parametrize(
    ("policy", "denied"), [("rng_device", None), ("block_device", "getrandom")]
)
def test_random_bytes_are_for_rng_alone(policy: str, denied: str | None) -> None:
    def draw() -> None:
        os.getrandom(65536)

    assert denied_call(policy, draw) == denied


@pytest.mark.parametrize(
    ("action", "name"),
    [
        pytest.param(lambda: os.execv("/bin/true", ["true"]), "execve", id="execve"),
        pytest.param(lambda: os.kill(os.getppid(), 9), "getppid", id="getppid"),
        pytest.param(lambda: os.kill(1, 9), "kill", id="kill"),
        pytest.param(lambda: str(linux.clone(0)), "clone", id="clone"),
        pytest.param(lambda: str(socket.socket()), "socket", id="socket"),
        pytest.param(lambda: os.mkdir("/tmp/x"), "mkdir", id="mkdir"),
        pytest.param(lambda: str(os.memfd_create("x")), "memfd_create", id="memfd"),
        pytest.param(lambda: os.ftruncate(0, 0), "ftruncate", id="ftruncate"),
        pytest.param(lambda: str(os.dup(0)), "fcntl", id="dup"),
        pytest.param(
            lambda: str(mmap.mmap(-1, 4096, mmap.MAP_PRIVATE, mmap.PROT_EXEC)),
            "mmap",
            id="map-executable",
        ),
        pytest.param(lambda: str(os.read(0, 4096)), "read", id="read"),
    ],
)
def test_denied_call_is_named(action: Callable[[], None], name: str) -> None:
    assert denied_call("block_device", action) == name
