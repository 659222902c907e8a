# SPDX-License-Identifier: BSD-3-Clause
"""The test host for pytest: one host for the session, commands in it from plain test functions.

pytest itself stays outside, where Python is twenty times faster. A test runs short commands with
``run``, and what shall live longer (``crosvm run``) with ``start``::

    def test_stop_ends_the_guest(kvmhost: KvmHost) -> None:
        with kvmhost.start(["crosvm", "run", "-s", "/tmp/s", ...]) as vmm:
            vmm.wait_for("guest: up")
            assert kvmhost.run(["crosvm", "stop", "/tmp/s"]).status == 0
            assert vmm.wait() == 0

A conftest makes the fixture: ``yield from session()``. With the environment variable
``CROSVM_KVMHOST`` set to the name of a host that stays (``up --name``), that one is used; for a
host of Debian trixie it is ``CROSVM_KVMHOST_TRIXIE``.
"""

from __future__ import annotations

import os
import re
import signal
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple

from tests.guests import debian
from tests.kvmhost.client import Connection, HostGoneError
from tests.kvmhost.host import Host
from tests.kvmhost.protocol import Kind, RunRequest

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from typing import Self

DEFAULT_SECONDS: Final = 60.0
KILL_SECONDS: Final = 20.0
STAYING_VARIABLE: Final = "CROSVM_KVMHOST"


class Result(NamedTuple):
    """How a command ended. 128 + n is death by signal n, 127 not found."""

    status: int
    stdout: str
    stderr: str


class Command:
    """A command that runs in the host while the test goes on."""

    def __init__(self, connection: Connection, request: RunRequest) -> None:
        self._connection = connection
        self._output = {Kind.STDOUT: bytearray(), Kind.STDERR: bytearray()}
        self._changed = threading.Condition()
        self._status: int | None = None
        self._error: Exception | None = None
        connection.send(Kind.RUN, request.encode())
        self._thread = threading.Thread(target=self._collect, daemon=True)
        self._thread.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def stdout(self) -> str:
        """What it has written so far."""
        return self._text(Kind.STDOUT)

    @property
    def stderr(self) -> str:
        """What it has written to stderr so far."""
        return self._text(Kind.STDERR)

    @property
    def status(self) -> int | None:
        """Its exit status, or ``None`` while it runs."""
        return self._status

    def send(self, data: str | bytes) -> None:
        """Write to its stdin."""
        self._connection.send_stdin(data.encode() if isinstance(data, str) else data)

    def end_input(self) -> None:
        """Close its stdin."""
        self._connection.send(Kind.EOF)

    def signal(self, number: int) -> None:
        """Signal its process group; with SIGKILL everything that it ever started dies."""
        self._connection.signal(number)

    def wait(self, timeout: float = DEFAULT_SECONDS) -> int:
        """Wait for the end and return the exit status.

        Raises:
            TimeoutError: it still runs; the message has the end of its output.
            HostGoneError: the host died.
        """
        with self._changed:
            ended = self._changed.wait_for(lambda: self._ended, timeout)
            self._raise_error()
            if not ended or self._status is None:
                raise TimeoutError(f"still runs after {timeout:.0f} s\n{self._tail()}")
            return self._status

    def wait_for(self, pattern: str, timeout: float = DEFAULT_SECONDS) -> re.Match[str]:
        """Wait until its stdout has a match of the regular expression ``pattern``.

        Raises:
            TimeoutError: no match in time, or none when it ended.
            HostGoneError: the host died.
        """
        with self._changed:
            deadline = time.monotonic() + timeout
            while not (found := re.search(pattern, self._text(Kind.STDOUT))):
                self._raise_error()
                left = deadline - time.monotonic()
                if self._ended or left <= 0:
                    raise TimeoutError(f"no {pattern!r} in the output\n{self._tail()}")
                self._changed.wait(left)
            return found

    def close(self) -> None:
        """Kill everything that it started, and give the port back."""
        try:
            if not self._ended:
                self.signal(signal.SIGKILL)
                self._thread.join(KILL_SECONDS)
        except HostGoneError:
            pass  # then nothing of it is left
        self._connection.close()

    @property
    def _ended(self) -> bool:
        return self._status is not None or self._error is not None

    def _text(self, kind: Kind) -> str:
        return self._output[kind].decode(errors="replace")

    def _tail(self) -> str:
        return f"stdout: {self.stdout[-2000:]}\nstderr: {self.stderr[-2000:]}"

    def _raise_error(self) -> None:
        if self._error:
            raise HostGoneError(f"{self._error}\n{self._tail()}") from self._error

    def _collect(self) -> None:
        status: int | None = None
        failure: Exception | None = None
        try:
            status = self._connection.wait(self._add, threading.TIMEOUT_MAX)
        except (HostGoneError, OSError, ValueError) as error:  # closed below us, too
            failure = error
        with self._changed:
            self._status, self._error = status, failure
            self._changed.notify_all()

    def _add(self, kind: Kind, data: bytes) -> None:
        with self._changed:
            self._output[kind] += data
            self._changed.notify_all()


class KvmHost:
    """What tests see of the host. Up to eight commands at once."""

    def __init__(self, host: Host) -> None:
        self._host = host

    def start(
        self,
        argv: Sequence[str],
        *,
        cwd: str = "/tmp",
        user: str = "root",
        env: dict[str, str] | None = None,
    ) -> Command:
        """Start a command and return at once; use it in a ``with`` statement."""
        return Command(self._host.connect(), RunRequest(list(argv), cwd, user, env))

    def run(
        self,
        argv: Sequence[str],
        *,
        stdin: str | bytes = b"",
        timeout: float = DEFAULT_SECONDS,
        cwd: str = "/tmp",
        user: str = "root",
        env: dict[str, str] | None = None,
    ) -> Result:
        """Run a command to its end.

        Raises:
            TimeoutError: it took longer than ``timeout`` seconds; all that it started is killed.
        """
        with self.start(argv, cwd=cwd, user=user, env=env) as command:
            command.send(stdin)
            command.end_input()
            status = command.wait(timeout)
            return Result(status, command.stdout, command.stderr)

    def shell(self, script: str, *, timeout: float = DEFAULT_SECONDS, user: str = "root") -> str:
        """Run a shell script that must succeed, and return its stdout.

        Raises:
            AssertionError: it did not end with status 0.
        """
        result = self.run(["sh", "-euc", script], timeout=timeout, user=user)
        assert result.status == 0, result
        return result.stdout

    def write(self, path: str, data: str | bytes) -> None:
        """Write a file in the host."""
        result = self.run(["sh", "-c", 'cat >"$0"', path], stdin=data)
        assert result.status == 0, result

    def push(self, local: Path, remote: str) -> None:
        """Copy a local file into the host."""
        self._host.push(local, remote)

    def pull(self, remote: str, local: Path) -> None:
        """Copy a folder of the host into a local folder."""
        self._host.pull(remote, local)


def session(release: str = debian.SUITE) -> Iterator[KvmHost]:
    """Yield a host with the project in it, and end it afterwards."""
    suffix = "" if release == debian.SUITE else f"_{release.upper()}"
    name = os.environ.get(STAYING_VARIABLE + suffix)
    if name:
        host = Host.staying(name)
        host.sync()
        yield KvmHost(host)
        return
    with Host.start(release=release) as host:
        host.sync()
        yield KvmHost(host)
