# SPDX-License-Identifier: BSD-3-Clause
"""Send a request to a VM over its control socket."""

from __future__ import annotations

import os
import select
import time
from contextlib import ExitStack, contextmanager

from crosvm_py.requests.protocol import MAX_RESPONSE_BYTES, Failed
from crosvm_py.socket_path import MAX_PATH_BYTES, peer_credentials
from sys_util import socket
from sys_util.errors import ConfigError, HostError, ProtocolError, VmmError
from sys_util.typing import TYPE_CHECKING, Final, Self
from sys_util.wire import Codec, encode

if TYPE_CHECKING:
    from collections.abc import Iterator

    from crosvm_py.requests.protocol import Request, Response

TIMEOUT_SECONDS: Final = 30.0


class ControlError(VmmError):
    """The VM did not carry out the request."""


class Conversation:
    """A connection to the VM at ``path``, for several requests, one after the other.

    Everything together must be done within ``timeout_seconds``. Use it as a context manager.
    """

    def __init__(self, path: str, timeout_seconds: float = TIMEOUT_SECONDS) -> None:
        """Connect.

        Raises:
            ControlError: the VM does not accept the connection in time.
            HostError: nothing listens at ``path``.
        """
        if len(os.fsencode(path)) > MAX_PATH_BYTES:
            raise ConfigError(f"{path}: a socket path has at most {MAX_PATH_BYTES} bytes")
        self._path = path
        self._timeout_seconds = timeout_seconds
        self._deadline = time.monotonic() + timeout_seconds
        with ExitStack() as stack:
            self._sock = stack.enter_context(
                socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_CLOEXEC)
            )
            with self._refusals():
                _connect(self._sock, path, self._deadline)
                # Now, while its pid cannot have been reused.
                self.pid, self._vmm = _open_peer(self._sock)
            if self._vmm is not None:
                stack.callback(os.close, self._vmm)
            self._stack = stack.pop_all()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exception: object) -> None:
        self._stack.close()

    def ask(self, request: Request) -> Response:
        """Send ``request`` and return its answer.

        Raises:
            ControlError: the VM refused, does not answer in time, or is not a crosvm-py VM.
            HostError: the connection fails.
        """
        with self._refusals():
            self._sock.send(encode(request), socket.MSG_NOSIGNAL)
            payload = _receive(self._sock, self._deadline)
        if not payload:
            raise ControlError(f"{self._path}: the VM closed the connection without an answer")
        try:
            answer = Codec((request.ANSWER, Failed)).decode(payload)
        except ProtocolError as error:
            raise ControlError(f"{self._path}: no answer of a VM of ours: {error}") from None
        if isinstance(answer, Failed):
            raise ControlError(f"{self._path}: {answer.reason}")
        return answer

    def wait_until_gone(self) -> None:
        """Wait until the process of the VM has ended.

        Raises:
            ControlError: it does not end in time.
        """
        if not _ends(self._sock, self._vmm, self._deadline):
            raise ControlError(f"{self._path}: still running after {self._timeout_seconds:g} s")

    @contextmanager
    def _refusals(self) -> Iterator[None]:
        try:
            yield
        except TimeoutError:
            limit = f"{self._timeout_seconds:g} s"
            raise ControlError(f"{self._path}: no answer within {limit}") from None
        except OSError as error:
            raise HostError("ask", self._path) from error


def ask(
    path: str,
    request: Request,
    *,
    until_gone: bool = False,
    timeout_seconds: float = TIMEOUT_SECONDS,
) -> Response:
    """Send ``request`` to the VM at ``path`` and return its answer.

    With ``until_gone`` also wait until its process has ended. Then the disks and the socket can be
    used again.

    Raises:
        ControlError: the VM refused, does not answer in time, or is not a crosvm-py VM.
        HostError: nothing listens at ``path``.
    """
    with Conversation(path, timeout_seconds) as conversation:
        answer = conversation.ask(request)
        if until_gone:
            conversation.wait_until_gone()
        return answer


def _connect(sock: socket.socket, path: str, deadline: float) -> None:
    _limit(sock, deadline)
    try:
        sock.connect(path)
    except FileNotFoundError as error:
        raise HostError("connect to", path, "no VM has its control socket there") from error
    except ConnectionRefusedError as error:
        raise HostError("connect to", path, "the VM that made it is gone") from error
    except TimeoutError:
        raise
    except OSError as error:
        raise HostError("connect to", path) from error


def _receive(sock: socket.socket, deadline: float) -> bytes:
    _limit(sock, deadline)
    return sock.recv(MAX_RESPONSE_BYTES)


def _limit(sock: socket.socket, deadline: float) -> None:
    # Never 0: that would make the socket non-blocking.
    sock.settimeout(max(deadline - time.monotonic(), 0.001))


def _open_peer(sock: socket.socket) -> tuple[int, int | None]:
    """Return the process that listens: its pid, and a pidfd; 0 and None if we cannot see it."""
    pid = peer_credentials(sock)[0]
    try:
        return (pid, os.pidfd_open(pid)) if pid > 0 else (0, None)
    except OSError:
        return pid, None


def _ends(sock: socket.socket, vmm: int | None, deadline: float) -> bool:
    """Wait until the connection is closed and the process, if we have a pidfd, has ended."""
    try:
        while _receive(sock, deadline):
            pass
    except ConnectionResetError:
        pass
    except TimeoutError:
        return False
    if vmm is None:
        return True
    poll = select.poll()
    poll.register(vmm, select.POLLIN)
    return bool(poll.poll(max(deadline - time.monotonic(), 0) * 1000))
