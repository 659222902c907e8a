# SPDX-License-Identifier: BSD-3-Clause
"""Send a request to a VM over its control socket."""

from __future__ import annotations

import os
import select
import time
from contextlib import ExitStack

from crosvm_py.requests.protocol import MAX_RESPONSE_BYTES, Failed
from crosvm_py.socket_path import MAX_PATH_BYTES, peer_credentials
from sys_util import socket
from sys_util.errors import ConfigError, HostError, ProtocolError, VmmError
from sys_util.typing import TYPE_CHECKING, Final
from sys_util.wire import Codec, encode

if TYPE_CHECKING:
    from crosvm_py.requests.protocol import Request, Response

TIMEOUT_SECONDS: Final = 30.0


class ControlError(VmmError):
    """The VM did not carry out the request."""


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
    if len(os.fsencode(path)) > MAX_PATH_BYTES:
        raise ConfigError(f"{path}: a socket path has at most {MAX_PATH_BYTES} bytes")
    deadline = time.monotonic() + timeout_seconds
    with (
        socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_CLOEXEC) as sock,
        ExitStack() as stack,
    ):
        try:
            _connect(sock, path, deadline)
            vmm = _open_peer(sock)  # now, while its pid cannot have been reused
            if vmm is not None:
                stack.callback(os.close, vmm)
            sock.send(encode(request), socket.MSG_NOSIGNAL)
            payload = _receive(sock, deadline)
        except TimeoutError:
            raise ControlError(f"{path}: no answer within {timeout_seconds:g} s") from None
        except OSError as error:
            raise HostError("ask", path) from error
        if not payload:
            raise ControlError(f"{path}: the VM closed the connection without an answer")
        try:
            answer = Codec((request.ANSWER, Failed)).decode(payload)
        except ProtocolError as error:
            raise ControlError(f"{path}: no answer of a VM of ours: {error}") from None
        if isinstance(answer, Failed):
            raise ControlError(f"{path}: {answer.reason}")
        if until_gone and not _ends(sock, vmm, deadline):
            raise ControlError(f"{path}: still running after {timeout_seconds:g} s")
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


def _open_peer(sock: socket.socket) -> int | None:
    """Return a pidfd of the process that listens, or None if it is not visible to us."""
    pid = peer_credentials(sock)[0]
    try:
        return os.pidfd_open(pid) if pid > 0 else None
    except OSError:
        return None


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
