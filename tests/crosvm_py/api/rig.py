# SPDX-License-Identifier: BSD-3-Clause
"""The REST API on a real loop and a real socket, in front of a vmm that a test plays."""

from __future__ import annotations

import array
import json
import os
import socket
from typing import TYPE_CHECKING, NamedTuple

from crosvm_py.api.start import serve_api
from crosvm_py.api.store import Store, make_store
from crosvm_py.requests.balloon import BalloonQuery
from crosvm_py.requests.devices import DeviceList, ListDevices
from crosvm_py.requests.pending import Pending
from crosvm_py.requests.protocol import Done
from crosvm_py.requests.resize import Resize, Resized
from crosvm_py.requests.vm import QueryVm, VmFacts
from crosvm_py.vm_config.codec import encode
from crosvm_py.vm_config.schema import VmConfig
from devices.virtio.commands import BalloonState
from sys_util.event_loop import EventLoop

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path

    from crosvm_py.requests.protocol import Request, Response

PID = 4321
MEMORY_BYTES = 512 << 20


class Answer(NamedTuple):
    """What a client gets."""

    status: int
    head: bytes
    body: bytes

    def json(self) -> object:
        return json.loads(self.body)


class Rig:
    """The control process's part, and its clients."""

    def __init__(
        self,
        directory: Path,
        config: VmConfig | None,
        *,
        store: int | None = None,
        spoiled: bytes = b"",
        boots: bool = False,
    ) -> None:
        self.loop = EventLoop()
        self.path = str(directory / "api")
        self._listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._listening.bind(self.path)
        self._listening.listen(64)
        self._listening.setblocking(False)
        self.state = "running"
        self.cpus = 1
        self.requests: list[Request] = []
        self.fds_asked: list[int] = []
        self.answers: dict[type[Request], Response | Pending] = {
            ListDevices: DeviceList(()),
            Resize: Resized(is_busy=False),
            BalloonQuery: BalloonState(0, 0, 0, False, False, 0, (), True, 0, False),
        }
        self._owns_store = store is None
        self.store = make_store() if store is None else store
        if config is not None or spoiled:
            Store(self.store).save(spoiled if config is None else encode(config))
        self.server = serve_api(
            self.loop,
            lambda *asked: self.ask(*asked),
            self._listening,
            self.store,
            PID,
            boots=boots,
        )

    def ask(self, request: Request, fds: Sequence[int] = ()) -> Pending:
        """Answer as a vmm would."""
        self.requests.append(request)
        self.fds_asked += fds
        answer = self.answers.get(type(request), Done())
        if isinstance(request, QueryVm):
            has_vm = self.state in ("running", "suspended")
            answer = VmFacts(self.state, self.cpus, MEMORY_BYTES if has_vm else 0)
        if isinstance(answer, Pending):
            return answer
        pending = Pending()
        pending.complete(answer)
        return pending

    def asked(self) -> list[Request]:
        """Return what the vmm was asked besides its state."""
        return [request for request in self.requests if not isinstance(request, QueryVm)]

    def turn(self, rounds: int = 6) -> None:
        for _ in range(rounds):
            self.loop.run_once(0)

    def client(self) -> socket.socket:
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        sock.settimeout(5)
        sock.connect(self.path)
        self.turn(2)
        return sock

    def call(self, sock: socket.socket, data: bytes, fds: Iterable[int] = ()) -> Answer:
        """Send a request in one piece and return its answer."""
        rights = array.array("i", fds).tobytes()
        ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, rights)] if rights else []
        sock.sendmsg([data], ancillary)
        self.turn()
        return read_answer(sock)

    def put(self, name: str, body: bytes = b"") -> Answer:
        """Call an endpoint on a connection of its own."""
        with self.client() as sock:
            return self.call(sock, request("PUT", name, body))

    def get(self, name: str) -> Answer:
        with self.client() as sock:
            return self.call(sock, request("GET", name))

    def close(self) -> None:
        self.server.close()
        self._listening.close()
        self.loop.close()
        if self._owns_store:
            os.close(self.store)


def request(method: str, name: str, body: bytes = b"") -> bytes:
    """Return a request as ch-remote writes it."""
    head = f"{method} /api/v1/{name} HTTP/1.1\r\nHost: localhost\r\nAccept: */*\r\n"
    length = f"Content-Length: {len(body)}\r\n" if body else ""
    return f"{head}{length}\r\n".encode() + body


def read_answer(sock: socket.socket) -> Answer:
    """Read one answer, whole."""
    data = b""
    while b"\r\n\r\n" not in data:
        piece = sock.recv(65536)
        assert piece, data
        data += piece
    head, _, body = data.partition(b"\r\n\r\n")
    lengths = [line for line in head.split(b"\r\n") if line.startswith(b"Content-Length: ")]
    length = int(lengths[0].split()[1]) if lengths else 0
    while len(body) < length:
        body += sock.recv(65536)
    assert len(body) == length
    return Answer(int(head.split()[1]), head, body)
