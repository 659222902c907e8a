# SPDX-License-Identifier: BSD-3-Clause
"""Run ``crosvm`` in a process that has been forked from one with all modules: no import again.

``run_warm`` is for tests of what a command says and does; it starts no interpreter, which takes
most of the time of a refusal. ``python -m tests.support.warm FD`` is the process that forks.
"""

from __future__ import annotations

import atexit
import io
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import traceback
from contextlib import ExitStack, suppress
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from typing import NoReturn

ROOT: Final = Path(__file__).parents[2]
PATIENCE_SECONDS: Final = 120.0
_MAX_REQUEST_BYTES: Final = 1 << 17


class _Server:
    """The process that forks: it serves one command after the other."""

    def __init__(self) -> None:
        self._sock, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._process = subprocess.Popen(
            [sys.executable, "-m", __name__, str(theirs.fileno())],
            cwd=ROOT,
            stdin=subprocess.DEVNULL,
            pass_fds=[theirs.fileno()],
            start_new_session=True,
        )
        theirs.close()
        self._process.wait()  # it has forked: tests count on having no child but their own
        self._sock.settimeout(PATIENCE_SECONDS)

    def run(self, request: bytes, fds: Sequence[int]) -> int:
        """Run a command with these three descriptors; return its status as of waitpid(2)."""
        socket.send_fds(self._sock, [request], list(fds))
        status = self._sock.recv(64)
        if not status:
            raise RuntimeError("the process that forks has ended")
        return int(status)

    def close(self) -> None:
        """End it, and what it has started."""
        self._sock.close()
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)


@cache
def _server() -> _Server:
    server = _Server()
    atexit.register(server.close)
    return server


def run_warm(
    *words: str | Path, cwd: Path = ROOT, env: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Run ``crosvm`` with these words to its end, with nothing on its stdin.

    Raises:
        TimeoutError: it took longer than ``PATIENCE_SECONDS``; it is killed.
    """
    command = ["crosvm", *map(str, words)]
    request = {"argv": command, "cwd": str(cwd), "env": dict(os.environ if env is None else env)}
    with ExitStack() as stack:
        null = stack.enter_context(open(os.devnull, "rb"))
        out, err = (stack.enter_context(tempfile.TemporaryFile()) for _ in range(2))
        try:
            fds = [null.fileno(), out.fileno(), err.fileno()]
            status = _server().run(json.dumps(request).encode(), fds)
        except (OSError, RuntimeError):
            _server().close()
            _server.cache_clear()
            raise
        said = [os.pread(file.fileno(), os.fstat(file.fileno()).st_size, 0) for file in (out, err)]
    code = os.waitstatus_to_exitcode(status)
    return subprocess.CompletedProcess(command, code, said[0].decode(), said[1].decode())


def _become(request: bytes, fds: Sequence[int]) -> NoReturn:
    """Be the command, and end."""
    status = 70
    try:
        wanted = json.loads(request)
        for number, fd in enumerate(fds):
            os.dup2(fd, number)
        os.closerange(3, 256)
        os.chdir(wanted["cwd"])
        os.environ.clear()
        os.environ.update(wanted["env"])
        sys.argv[:] = wanted["argv"]
        sys.stdin, sys.stdout, sys.stderr = (
            io.TextIOWrapper(os.fdopen(number, mode, closefd=False))
            for number, mode in ((0, "rb"), (1, "wb"), (2, "wb"))
        )
        from crosvm_py.__main__ import main

        status = main()
    except SystemExit as error:
        status = error.code if isinstance(error.code, int) else 1
    except BaseException:  # noqa: BLE001 - as an interpreter does
        traceback.print_exc()
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    os._exit(status)


def serve(fd: int) -> None:
    """Fork for each request until the socket is closed, as a child of nobody."""
    from crosvm_py.bundle_maker import import_all

    if os.fork():
        os._exit(0)
    import_all()
    sock = socket.socket(fileno=fd)
    while True:
        request, fds, _, _ = socket.recv_fds(sock, _MAX_REQUEST_BYTES, 3)
        if not request:
            return
        pid = os.fork()
        if pid == 0:
            _become(request, fds)
        for each in fds:
            os.close(each)
        sock.send(str(os.waitpid(pid, 0)[1]).encode())


if __name__ == "__main__":
    serve(int(sys.argv[1]))
