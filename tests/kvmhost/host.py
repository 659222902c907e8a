# SPDX-License-Identifier: BSD-3-Clause
"""A running test host: start it, reach it, copy the project in and results out, end it."""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Final

from tests.guests import debian, newer
from tests.guests.cache import CACHE, PROJECT, artefact, say
from tests.kvmhost import image, qemu
from tests.kvmhost.client import Connection, HostGoneError, forward_input
from tests.kvmhost.protocol import PORTS, Kind, RunRequest

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import Self

STATES: Final = CACHE / "kvmhost" / "states"
DEFAULT_NAME: Final = "up"
NEWER: Final = "newer"  # is in the state folder of a host of the newer Debian
BOOT_SECONDS: Final = 120.0
RESTORE_SECONDS: Final = 60.0
COPY_SECONDS: Final = 300.0
END_SECONDS: Final = 10.0
CONSOLE_TAIL_BYTES: Final = 3000
SOURCES: Final = (
    *(
        "crosvm_py",
        "devices",
        "disk",
        "jail",
        "kernel_loader",
        "kvm",
        "seccomp",
        "sys_util",
        "tests",
    ),
)
LEFT_OUT: Final = (
    *("./.git", "./.cache", "./.venv", "./build", "./*.egg-info", ".mypy_cache", ".ruff_cache"),
    *(".pytest_cache", ".hypothesis", "*.o"),
)
# The libraries that only some commands need come with the project; the image is without them.
EXTRAS: Final = ("httptools", "msgspec")
# Built where there is a cargo. The host runs it, too.
LOOP: Final = PROJECT / ".venv" / "bin" / "crosvm-forge"
WARM_UP: Final = (
    "import argparse, ctypes, dataclasses, json, lz4.block, mmap, msgpack, prctl, pyseccomp,"
    " pytest, select, socket, subprocess, tempfile, threading, zstandard, _cffi_backend"
)


class Host:
    """One QEMU and its state folder."""

    def __init__(self, state: Path, process: subprocess.Popen[bytes] | None = None) -> None:
        self.state = state
        self._process = process

    @classmethod
    def start(cls, stay_as: str | None = None, release: str = debian.SUITE) -> Self:
        """Start a fresh host and wait until it answers; one with a name outlives this process.

        Raises:
            BuildError: it cannot be built.
            HostGoneError: it does not come up.
        """
        parts = image.build(release)
        host = cls._launch(parts, snapshot(parts, release), stay_as)
        if release != debian.SUITE:
            (host.state / NEWER).touch()
        return host

    @classmethod
    def cold(cls, parts: image.Image) -> Self:
        """Boot a fresh host from these disks, without a snapshot, and wait until it answers.

        Raises:
            HostGoneError: it does not come up.
        """
        return cls._launch(parts, None, None)

    @classmethod
    def _launch(cls, parts: image.Image, saved: Path | None, stay_as: str | None) -> Self:
        STATES.mkdir(parents=True, exist_ok=True)
        _remove_dead()
        if stay_as:
            state = STATES / stay_as
            state.mkdir()
        else:
            state = Path(tempfile.mkdtemp(dir=STATES))
        host = cls(state)
        try:
            host._process = qemu.start(parts, state, saved, stay=bool(stay_as))
            connection = host.connect(RESTORE_SECONDS if saved else BOOT_SECONDS)
            connection.set_clock()
            connection.close()
        except BaseException as error:
            log = host.console()
            host.close()
            if isinstance(error, HostGoneError):
                raise HostGoneError(f"{error}\n{log}") from error
            raise
        return host

    @classmethod
    def staying(cls, name: str) -> Self:
        """Return the host that ``up`` started under this name.

        Raises:
            HostGoneError: there is none.
        """
        if not qemu.is_alive(STATES / name):
            raise HostGoneError(f"no host {name} is up (python3 -m tests.kvmhost up)")
        return cls(STATES / name)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Kill QEMU and remove the state folder."""
        qemu.kill(self.state)
        if self._process:
            self._process.kill()
            self._process.wait()
        deadline = time.monotonic() + END_SECONDS
        while qemu.is_alive(self.state) and time.monotonic() < deadline:
            time.sleep(0.005)
        shutil.rmtree(self.state, ignore_errors=True)

    def console(self) -> str:
        """Return the end of what QEMU and the host's kernel printed."""
        texts = [
            path.read_text(errors="replace")[-CONSOLE_TAIL_BYTES:]
            for path in (self.state / qemu.ERRORS, self.state / qemu.CONSOLE)
            if path.exists()
        ]
        return "".join(
            line
            for line in "".join(texts).splitlines(keepends=True)
            if "TCG doesn't support requested feature" not in line
        )

    def connect(self, timeout: float = RESTORE_SECONDS) -> Connection:
        """Take a free port and wait until its agent answers.

        Raises:
            HostGoneError: the host does not answer, or all ports are busy.
        """
        deadline = time.monotonic() + timeout
        while time.monotonic() < deadline:
            if self._process and self._process.poll() is not None:
                raise HostGoneError("QEMU ended")
            connection = self._free_port()
            if connection:
                try:
                    connection.hello(deadline - time.monotonic())
                except BaseException:
                    connection.close()
                    raise
                return connection
            time.sleep(0.005)
        raise HostGoneError("no free port")

    def _free_port(self) -> Connection | None:
        for number in range(PORTS):
            flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC
            lock = os.open(self.state / f"lock.{number}", flags, 0o600)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return Connection(qemu.connect(self.state, qemu.port(number)), lock)
            except OSError:
                os.close(lock)
        return None

    def sync(self, sources: Sequence[str] = SOURCES) -> None:
        """Replace ``/project`` by the project as it is now, with ``sources`` compiled."""
        is_newer = (self.state / NEWER).exists()
        python = newer.build().python() if is_newer else ["/usr/bin/python3"]
        compiler = [*python, "-m", "compileall", "-q", *sources]
        # A source that does not compile is for the command in the host to complain about.
        subprocess.run(compiler, cwd=PROJECT, stdout=subprocess.DEVNULL, check=False)
        excluded = [f"--exclude={pattern}" for pattern in LEFT_OUT]
        pack = ["tar", "-C", str(PROJECT), *excluded, "-cf", "-", "."]
        pack += ["-C", str(image.SITE_PACKAGES), *EXTRAS]
        script = "find . -mindepth 1 -delete; tar --no-same-owner -xf -"
        if LOOP.exists():
            pack += ["-C", str(LOOP.parent), LOOP.name]
            script += f"; mv {LOOP.name} /usr/bin/"  # beside the interpreter
        with subprocess.Popen(pack, stdout=subprocess.PIPE) as tar:
            self._copy(RunRequest(["sh", "-c", script]), _fileno(tar), None)

    def push(self, local: Path, remote: str) -> None:
        """Copy a local file to a path in the host."""
        with local.open("rb") as file:
            request = RunRequest(["sh", "-c", 'cat >"$0"', remote], cwd="/")
            self._copy(request, file.fileno(), None)

    def pull(self, remote: str, local: Path) -> None:
        """Copy a folder of the host into a local one."""
        local.mkdir(parents=True, exist_ok=True)
        unpack = ["tar", "-C", str(local), "--no-same-owner", "-xf", "-"]
        with subprocess.Popen(unpack, stdin=subprocess.PIPE) as tar:
            if tar.stdin is None:
                raise ValueError("no pipe to tar")
            self._copy(RunRequest(["tar", "-C", remote, "-cf", "-", "."]), None, tar.stdin.write)
            tar.stdin.close()

    def _copy(
        self, request: RunRequest, source: int | None, output: Callable[[bytes], object] | None
    ) -> None:
        errors = bytearray()

        def sink(kind: Kind, data: bytes) -> None:
            if kind is Kind.STDOUT and output:
                output(data)
            else:
                errors.extend(data)

        connection = self.connect()
        try:
            connection.send(Kind.RUN, request.encode())
            if source is None:
                connection.send(Kind.EOF)
            else:
                forward_input(connection, source)
            status = connection.wait(sink, COPY_SECONDS)
        finally:
            connection.close()
        if status:
            raise HostGoneError(f"copying: status {status}: {errors.decode(errors='replace')}")


def _remove_dead() -> None:
    """Remove the state folders of hosts whose client was killed."""
    for state in STATES.iterdir():
        if not qemu.is_alive(state):
            shutil.rmtree(state, ignore_errors=True)


def _fileno(process: subprocess.Popen[bytes]) -> int:
    if process.stdout is None:
        raise ValueError("the process has no pipe")
    return process.stdout.fileno()


def snapshot(parts: image.Image, release: str = debian.SUITE) -> Path:
    """Return the folder of the saved state that fits these disks and this QEMU."""
    inputs = [qemu.version(), *qemu.command(parts), parts.identity(), WARM_UP]
    name = "snapshot" if release == debian.SUITE else f"{release}-snapshot"
    return artefact("kvmhost", name, inputs, lambda target: _take(parts, target))


def _take(parts: image.Image, target: Path) -> None:
    with Host._launch(parts, None, None) as host:
        for words in _warm_up():
            host._copy(RunRequest(list(words), cwd="/"), None, None)
        qemu.save(host.state)
        shutil.move(host.state / qemu.STATE, target / qemu.STATE)
        run = ["cp", "--sparse=always", str(host.state / qemu.SCRATCH), str(target)]
        subprocess.run(run, check=True)
    size_mib = (target / qemu.STATE).stat().st_size >> 20
    say(f"snapshot: {size_mib} MiB")


def _warm_up() -> Sequence[Sequence[str]]:
    return (
        ("python3", "-I", "-c", WARM_UP),
        ("sh", "-c", "tar --version; find /guests; ps; cat /guests/builtin/vmlinux; sync"),
    )
