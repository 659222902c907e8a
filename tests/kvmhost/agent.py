# SPDX-License-Identifier: BSD-3-Clause
"""Runs in the test host: serve commands, one process of this agent for each port.

A command lives in a cgroup of its own, so that when its client goes away (or asks) everything it
started dies with it, daemons too. A command that ends by itself may leave processes behind.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import pwd
import select
import signal
import subprocess
import time
from pathlib import Path
from typing import IO, Final

from tests.kvmhost.protocol import (
    CHUNK_BYTES,
    PORT_PREFIX,
    STATUS_NOT_FOUND,
    STATUS_SIGNAL_BASE,
    Decoder,
    Frame,
    FrameError,
    Kind,
    RunRequest,
    decode_clock,
    encode,
    encode_status,
)

CGROUPS: Final = Path("/sys/fs/cgroup")
RNDRESEEDCRNG: Final = 0x5207
# A daemon of the command may hold its output open: stop waiting for more this long after exit.
DRAIN_SECONDS: Final = 1.0
INHERITED: Final = {"PATH": os.environ.get("PATH", os.defpath), "LANG": "C.UTF-8"}


class Command:
    """A running command: its process, its pipes, its cgroup."""

    def __init__(self, request: RunRequest, cgroup: Path) -> None:
        self.cgroup = cgroup
        self.pending = bytearray()
        self.closing = False
        self.exited_at: float | None = None
        account = pwd.getpwnam(request.user)
        cgroup.mkdir()
        _join(cgroup)  # children inherit it: nothing can slip out in between
        try:
            self.process = subprocess.Popen(
                request.argv,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                bufsize=0,
                cwd=request.cwd,
                env={
                    **INHERITED,
                    "HOME": account.pw_dir,
                    "USER": request.user,
                    **(request.env or {}),
                },
                user=account.pw_uid,
                group=account.pw_gid,
                extra_groups=os.getgrouplist(request.user, account.pw_gid),
                start_new_session=True,
            )
        finally:
            _join(CGROUPS)
        self.pidfd = os.pidfd_open(self.process.pid)
        os.set_blocking(_pipe(self.process.stdin).fileno(), False)

    def outputs(self) -> dict[int, tuple[Kind, IO[bytes]]]:
        """Return the pipes that may still give output, by file descriptor."""
        pairs = ((Kind.STDOUT, self.process.stdout), (Kind.STDERR, self.process.stderr))
        return {pipe.fileno(): (kind, pipe) for kind, pipe in pairs if pipe and not pipe.closed}

    def feed(self) -> None:
        """Write what is pending to the command's stdin, as much as it takes now."""
        stdin = _pipe(self.process.stdin)
        if stdin.closed:
            self.pending.clear()
            return
        try:
            while self.pending:
                del self.pending[: os.write(stdin.fileno(), self.pending[:CHUNK_BYTES])]
        except BlockingIOError:
            return
        except BrokenPipeError:
            self.pending.clear()
        if self.closing:
            stdin.close()

    def signal(self, number: int) -> None:
        """Signal the command's process group, or for SIGKILL everything it ever started."""
        if number == signal.SIGKILL:
            (self.cgroup / "cgroup.kill").write_text("1")
        elif self.exited_at is None:
            os.killpg(self.process.pid, number)

    def close(self) -> int:
        """Release everything and return the exit status as a shell gives it."""
        status = self.process.wait()
        os.close(self.pidfd)
        for pipe in (self.process.stdin, self.process.stdout, self.process.stderr):
            _pipe(pipe).close()
        with contextlib.suppress(OSError):  # daemons still live in it
            self.cgroup.rmdir()
        return STATUS_SIGNAL_BASE - status if status < 0 else status


def _pipe(pipe: IO[bytes] | None) -> IO[bytes]:
    if pipe is None:
        raise ValueError("a pipe was asked for")
    return pipe


def _join(cgroup: Path) -> None:
    (cgroup / "cgroup.procs").write_text("0")


class Port:
    """One virtio-serial port and the command that its client runs."""

    def __init__(self, device: Path, name: str) -> None:
        self._name = name
        self._fd = os.open(device, os.O_RDWR | os.O_NONBLOCK)
        self._decoder = Decoder()
        self._command: Command | None = None
        self._count = 0
        self._poll = select.epoll()
        # Edge-triggered: without a client the port reports a hang-up for ever.
        self._poll.register(self._fd, select.EPOLLIN | select.EPOLLET)

    def serve(self) -> None:
        """Serve clients for ever."""
        while True:
            waiting = self._command is not None and self._command.exited_at is not None
            for fd, events in self._poll.poll(DRAIN_SECONDS if waiting else None):
                if fd == self._fd:
                    self._on_port(events)
                elif self._command:
                    self._on_command(self._command, fd)
            self._finish()

    def _on_port(self, events: int) -> None:
        if events & select.EPOLLHUP:
            self._decoder = Decoder()
            self._end_command()
            return
        with contextlib.suppress(BlockingIOError):
            while data := os.read(self._fd, CHUNK_BYTES):
                try:
                    frames = self._decoder.feed(data)
                except FrameError:  # the rest of an earlier client's frame; its heir says HELLO
                    continue
                for frame in frames:
                    self._on_frame(frame)

    def _on_frame(self, frame: Frame) -> None:
        command = self._command
        if frame.kind is Kind.HELLO:
            self._end_command()
            self._send(Kind.HELLO, frame.payload)
        elif frame.kind is Kind.CLOCK:
            _set_clock(frame.payload)
        elif frame.kind is Kind.RUN and command is None:
            self._run(RunRequest.decode(frame.payload))
        elif command is None:
            return
        elif frame.kind is Kind.SIGNAL:
            with contextlib.suppress(ProcessLookupError):
                command.signal(frame.payload[0])
        elif frame.kind in (Kind.STDIN, Kind.EOF):
            command.pending += frame.payload
            command.closing |= frame.kind is Kind.EOF
            self._feed(command)

    def _run(self, request: RunRequest) -> None:
        self._count += 1
        cgroup = CGROUPS / f"{self._name}.{self._count}"
        try:
            command = Command(request, cgroup)
        except (OSError, KeyError) as error:
            self._send(Kind.STDERR, f"kvmhost: {request.argv[0]}: {error}\n".encode())
            self._send(Kind.EXIT, encode_status(STATUS_NOT_FOUND))
            return
        self._command = command
        for fd in (command.pidfd, *command.outputs()):
            self._poll.register(fd, select.EPOLLIN)

    def _feed(self, command: Command) -> None:
        stdin = _pipe(command.process.stdin)
        if stdin.closed:
            return
        with contextlib.suppress(FileNotFoundError):
            self._poll.unregister(stdin.fileno())
        command.feed()
        if command.pending:
            self._poll.register(stdin.fileno(), select.EPOLLOUT)

    def _on_command(self, command: Command, fd: int) -> None:
        outputs = command.outputs()
        if fd in outputs:
            kind, pipe = outputs[fd]
            if data := os.read(fd, CHUNK_BYTES):
                self._send(kind, data)
            else:
                self._poll.unregister(fd)
                pipe.close()
        elif fd == command.pidfd:
            self._poll.unregister(fd)
            command.exited_at = time.monotonic()
        else:
            self._feed(command)

    def _finish(self) -> None:
        command = self._command
        if command is None or command.exited_at is None:
            return
        if command.outputs() and time.monotonic() - command.exited_at < DRAIN_SECONDS:
            return
        self._command = None  # closing its pipes takes them out of the poll set
        self._send(Kind.EXIT, encode_status(command.close()))

    def _end_command(self) -> None:
        if self._command:
            self._command.signal(signal.SIGKILL)
            self._command.close()
            self._command = None

    def _send(self, kind: Kind, payload: bytes) -> None:
        left = memoryview(encode(kind, payload))
        while left:
            try:
                left = left[os.write(self._fd, left) :]
            except BlockingIOError:
                ready = select.poll()
                ready.register(self._fd, select.POLLOUT)
                if any(events & select.POLLHUP for _, events in ready.poll()):
                    return
            except OSError:  # the client is gone
                return


def _set_clock(payload: bytes) -> None:
    """Set the time, and make the random pool differ from that of every other restored host."""
    seconds, entropy = decode_clock(payload)
    time.clock_settime(time.CLOCK_REALTIME, seconds)
    with open("/dev/urandom", "r+b", buffering=0) as pool:
        pool.write(entropy)
        fcntl.ioctl(pool, RNDRESEEDCRNG)


def main() -> None:
    """Start one process for each port, and wait."""
    for entry in sorted(Path("/sys/class/virtio-ports").iterdir()):
        name = (entry / "name").read_text().strip()
        if name.startswith(PORT_PREFIX) and os.fork() == 0:
            Port(Path("/dev") / entry.name, name).serve()
    while True:
        os.wait()


if __name__ == "__main__":
    main()
