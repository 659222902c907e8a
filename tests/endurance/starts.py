# SPDX-License-Identifier: BSD-3-Clause
"""Start a VM and end it, again and again and in every way, on this machine's KVM."""

from __future__ import annotations

import itertools
import os
import signal
import socket
import time
from typing import TYPE_CHECKING, Final, NamedTuple

from crosvm_py.requests import life
from sys_util import wire
from tests.baremetal.vmm import Vmm, eventually
from tests.endurance.progress import report
from tests.endurance.traces import Traces, shmem_kib
from tests.guests.baremetal.build import build_guest

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


class StartsResult(NamedTuple):
    """What came of it."""

    starts: int
    seconds: float
    shmem_growth_kib: int
    left: list[str]


def stop(vm: Vmm, path: Path) -> None:
    """Ask the VM to end, as ``crosvm stop`` does."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as sock:
        sock.connect(str(path))
        sock.send(wire.encode(life.Stop()))
        sock.recv(4096)
        sock.recv(4096)  # nothing: it has gone


def leave(vm: Vmm, _path: Path) -> None:
    """Let the guest end it."""
    vm.type(b"q")


def terminate(vm: Vmm, _path: Path) -> None:
    """End it as a service manager does."""
    vm.signal(signal.SIGTERM)


def kill_vmm(vm: Vmm, _path: Path) -> None:
    """Kill the vmm."""
    vm.signal(signal.SIGKILL)


def kill_warden(vm: Vmm, _path: Path) -> None:
    """Kill the warden."""
    os.kill(vm.processes().warden, signal.SIGKILL)


def kill_device(vm: Vmm, path: Path) -> None:
    """Kill a device, and stop the VM while it comes again."""
    os.kill(vm.processes().devices["rng"], signal.SIGKILL)
    stop(vm, path)


ENDS: Final[tuple[Callable[[Vmm, Path], None], ...]] = (
    stop,
    leave,
    terminate,
    kill_vmm,
    kill_warden,
    kill_device,
)


def run_starts(count: int, folder: Path, *, progress: bool) -> StartsResult:
    """Start and end ``count`` VMs and say what is left of them; ``folder`` is empty.

    Raises:
        AssertionError: one did not start, or did not end.
    """
    guest = build_guest("echo", folder)
    disk = folder / "disk.img"
    disk.write_bytes(bytes(8192))
    control, vsock = folder / "vm.sock", folder / "v.sock"
    words: list[str | Path] = ["-m", "16", "--balloon", "0", "--rwdisk", disk, "-s", control]
    words += ["--vsock", f"cid=3,socket={vsock}", guest]
    started = time.monotonic()
    before = Traces.of_host(folder)
    shmem = 0
    for number, end in zip(range(count), itertools.cycle(ENDS), strict=False):
        with Vmm(words) as vm:
            vm.wait_for(b"echo\n")
            vm.processes()
            end(vm, control)
            vm.wait()
            assert vm.nothing_is_left(), (number, end.__name__, vm.log())
        if number == len(ENDS) - 1:
            shmem = shmem_kib()  # what the first ones warmed up
        if progress and (number + 1) % 20 == 0:
            report(f"{number + 1} of {count}")
    eventually(lambda: not Traces.of_host(folder).new_since(before))
    after = Traces.of_host(folder)
    seconds = time.monotonic() - started
    return StartsResult(count, seconds, after.shmem_kib - shmem, after.new_since(before))
