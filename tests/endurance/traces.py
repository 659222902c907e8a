# SPDX-License-Identifier: BSD-3-Clause
"""What VMs could leave behind on a host: counted before and after."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple


class Traces(NamedTuple):
    """Everything of ours, or that only grows if we leak, on this host.

    A vmm is known by its command line, which its warden and its devices have, too. Other VMs may
    come and go meanwhile: what processes hold is looked for in these and in our own.
    """

    processes: frozenset[str]
    namespaces: frozenset[str]
    shared_memory: int  # memfds of guests and devices that somebody has open or mapped
    mounts: int
    cgroups: frozenset[str]
    interfaces: frozenset[str]
    files: frozenset[str]
    shmem_kib: int

    @classmethod
    def of_host(cls, folder: Path) -> Traces:
        """Look at the host; ``folder`` is where the VMs had their sockets and disks."""
        processes: set[str] = set()
        namespaces: set[str] = set()
        shared = 0
        for process in Path("/proc").glob("[0-9]*"):
            with suppress(OSError):  # it ends meanwhile
                if os.fsencode(folder) in (process / "cmdline").read_bytes():
                    processes.add(process.name)
                elif process.name != str(os.getpid()):
                    continue
                namespaces |= {os.readlink(link) for link in (process / "ns").iterdir()}
                maps = (process / "maps").read_text()
                shared += maps.count("/memfd:crosvm_")
                shared += sum("/memfd:crosvm_" in link for link in links(process / "fd"))
        return cls(
            frozenset(processes),
            frozenset(namespaces),
            shared,
            len(Path("/proc/self/mountinfo").read_text().splitlines()),
            frozenset(map(str, Path("/sys/fs/cgroup").glob("**/crosvm-*"))),
            frozenset(os.listdir("/sys/class/net")),
            frozenset(str(path) for path in folder.rglob("*")),
            shmem_kib(),
        )

    def new_since(self, before: Traces) -> list[str]:
        """Say what is there that was not there before."""
        found = []
        for name in ("processes", "namespaces", "cgroups", "interfaces", "files"):
            new = getattr(self, name) - getattr(before, name)
            found += [f"{name}: {item}" for item in sorted(new)]
        for name in ("shared_memory", "mounts"):
            now, then = getattr(self, name), getattr(before, name)
            if now > then:
                found.append(f"{name}: {now} instead of {then}")
        return found


def links(folder: Path) -> list[str]:
    """Return what the descriptors of a process are."""
    return [os.readlink(link) for link in folder.iterdir()]


def shmem_kib() -> int:
    """Return the host's shared memory, of whomever."""
    for line in Path("/proc/meminfo").read_text().splitlines():
        name, value, *_ = line.split()
        if name == "Shmem:":
            return int(value)
    raise LookupError("no Shmem in /proc/meminfo")
