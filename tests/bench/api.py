# SPDX-License-Identifier: BSD-3-Clause
"""The REST API: from the start of ``cloud-hypervisor`` to the first ping, and single requests."""

from __future__ import annotations

import json
import socket
import subprocess
import time
from typing import TYPE_CHECKING, Final

from tests.bench import install
from tests.bench.results import OURS, Metric, Results
from tests.crosvm_py.api.rig import read_answer, request
from tests.guests.baremetal.build import build_guest

if TYPE_CHECKING:
    from pathlib import Path

PATIENCE_SECONDS: Final = 60.0
# Of each kind, in one run.
REQUESTS: Final = 200

FIRST_PING: Final = Metric("start of cloud-hypervisor to the first answer", "ms")
BOOT: Final = Metric("vm.boot of a bare-metal guest, to its answer", "ms")
SINGLE: Final = {
    name: Metric(f"one request on an open connection: {name}", "us")
    for name in ("vmm.ping", "vm.info", "vm.counters")
}
PAUSE: Final = Metric("vm.pause and vm.resume", "us")


class Bench:
    """The program of one session."""

    def __init__(self, directory: Path, *, realtime: bool) -> None:
        """With ``realtime`` other work on this machine gets no processor that the program wants."""
        prefix = ["chrt", "--rr", "1"] if realtime else []
        crosvm = str(install.install(directory / "crosvm-py"))
        self._path = directory / "api.sock"
        self._command = [*prefix, crosvm, "ch", "--api-socket", str(self._path)]
        self._config = {
            "payload": {"kernel": str(build_guest("spin", directory))},
            "memory": {"size": 16 << 20},
            "console": {"mode": "Off"},
        }

    def run(self, runs: int) -> Results:
        """Measure ``runs`` times, after one run that warms up."""
        results = Results("REST API of cloud-hypervisor on this machine")
        results.note_load()
        for number in range(runs + 1):
            self._measure(results if number else Results("warm-up"))
        return results

    def _measure(self, results: Results) -> None:
        begun = time.perf_counter()
        process = subprocess.Popen(
            self._command, stdin=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        sock = self._connect(begun)
        call(sock, "GET", "vmm.ping")
        results.add(FIRST_PING, OURS, 1e3 * (time.perf_counter() - begun))
        call(sock, "PUT", "vm.create", json.dumps(self._config).encode())
        results.add(BOOT, OURS, 1e3 * call(sock, "PUT", "vm.boot"))
        for name, metric in SINGLE.items():
            took = min(call(sock, "GET", name) for _ in range(REQUESTS))
            results.add(metric, OURS, 1e6 * took)
        took = min(
            call(sock, "PUT", "vm.pause") + call(sock, "PUT", "vm.resume") for _ in range(20)
        )
        results.add(PAUSE, OURS, 1e6 * took)
        call(sock, "PUT", "vmm.shutdown")
        sock.close()
        process.wait(PATIENCE_SECONDS)

    def _connect(self, begun: float) -> socket.socket:
        while True:
            sock = socket.socket(socket.AF_UNIX)
            sock.settimeout(PATIENCE_SECONDS)
            if sock.connect_ex(str(self._path)) == 0:
                return sock
            sock.close()
            if time.perf_counter() - begun > PATIENCE_SECONDS:
                raise TimeoutError(f"nobody listens at {self._path}")
            time.sleep(0.001)


def call(sock: socket.socket, method: str, name: str, body: bytes = b"") -> float:
    """Make a request that succeeds; return the seconds that it took."""
    data = request(method, name, body)
    begun = time.perf_counter()
    sock.sendall(data)
    answer = read_answer(sock)
    took = time.perf_counter() - begun
    if answer.status not in (200, 204):
        raise TimeoutError(f"{name}: {answer.status} {answer.body!r}")
    return took
