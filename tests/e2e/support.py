# SPDX-License-Identifier: BSD-3-Clause
"""Guests in the test host: start one, talk to it, read what its script found out.

A script says what it sees with ``fact NAME COMMAND…``, and the test reads it from ``Vm.facts()``.
One boot takes seconds, so a script finds out many things at once.
"""

from __future__ import annotations

import base64
import json
import re
from typing import TYPE_CHECKING, Final, NamedTuple, TypedDict

if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Self

    from tests.kvmhost.fixture import Command, KvmHost, Result

# The host is an emulation that may share its processor: only a failure ever waits this long.
GUEST_SECONDS: Final = 180.0

ROOT_SQUASHFS: Final = "/guests/root.squashfs"
ROOT_EXT4: Final = "/guests/root.ext4"
TESTER: Final = "tester"
PROBE: Final = "/project/tests/e2e/probe.py"

# The kernel's command line has 2 KiB; a longer script comes on a disk of its own, the last one.
_MAX_INLINE_CHARS: Final = 1400
_DISK_OPTIONS: Final = frozenset(
    {"-b", "--block", "-d", "--disk", "--rwdisk", "-r", "--root", "--rwroot"}
)
_PRELUDE: Final = 'fact() { n=$1; shift; set -- "$("$@" 2>&1)"; echo "@$n="$1; }\n'
_FACT: Final = re.compile(r"^@(\w+)=(.*?)\r?$", re.MULTILINE)


class Kernel(NamedTuple):
    """A guest kernel in the test host, and the initrd that it needs."""

    path: str
    initrd: str | None = None


BUILTIN: Final = Kernel("/guests/builtin/vmlinux")
BUILTIN_BZIMAGE: Final = Kernel("/guests/builtin/bzImage")
CLOUD: Final = Kernel("/guests/cloud/vmlinux", "/guests/cloud/initrd.img")
CLOUD_BZIMAGE: Final = Kernel("/guests/cloud/bzImage", "/guests/cloud/initrd.img")
GENERIC_BZIMAGE: Final = Kernel("/guests/generic/bzImage", "/guests/generic/initrd.img")


class ProcessFacts(TypedDict):
    """What ``probe.py`` says of one process."""

    pid: int
    parent: int
    name: str
    namespaces: dict[str, str]
    status: dict[str, str]
    owner: int
    root: list[str]
    root_options: str
    fds: dict[str, str]
    limits: dict[str, str]


class Vm:
    """One ``crosvm run``; use it in a ``with`` statement, which kills all that is left of it."""

    def __init__(self, host: KvmHost, command: Command, folder: str, name: str) -> None:
        self.command = command
        self.socket = f"{folder}/{name}.sock"
        self._host = host
        self._pid_file = f"{folder}/{name}.pid"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.command.close()

    @property
    def console(self) -> str:
        """What the guest has printed on its console."""
        return self.command.stdout

    @property
    def log(self) -> str:
        """What crosvm has written to stderr."""
        return self.command.stderr

    @property
    def pid(self) -> int:
        """The process id of the vmm, in the host."""
        return int(self._host.shell(f"cat {self._pid_file}"))

    def wait_for(self, pattern: str) -> re.Match[str]:
        """Wait until the console has a match of ``pattern``."""
        return self.command.wait_for(pattern, GUEST_SECONDS)

    def wait_ready(self) -> None:
        """Wait until the guest's script has ended."""
        assert self.wait_for(r"guest: exit (\d+)")[1] == "0", self.console

    def wait(self) -> int:
        """Wait for the end of the VM and return the exit status of ``crosvm run``."""
        return self.command.wait(GUEST_SECONDS)

    def finish(self) -> dict[str, str]:
        """Wait for the orderly end of a guest whose script succeeds; return its facts."""
        status = self.wait()
        assert status == 0, (status, self.console[-8000:], self.log)
        self.wait_ready()
        return self.facts()

    def facts(self) -> dict[str, str]:
        """Return what the script has said by ``fact`` so far; line breaks became blanks."""
        return {found[1]: found[2] for found in _FACT.finditer(self.console)}

    def control(self, verb: str) -> Result:
        """Run ``crosvm VERB`` on the VM's socket, as root."""
        return self._host.run(["crosvm", verb, self.socket], timeout=GUEST_SECONDS)

    def processes(self) -> list[ProcessFacts]:
        """Return the facts of the vmm, which is the first, and of every process below it."""
        result = self._host.run(["python3", "-I", PROBE, str(self.pid)])
        assert result.status == 0, result.stderr
        found: list[ProcessFacts] = json.loads(result.stdout)
        return found


class Lab:
    """A folder in the host for one test, and the user who runs crosvm there.

    ``launch`` is the shell command that becomes crosvm, with its words as parameters, and
    ``launcher`` the user who starts it.
    """

    launch = 'exec crosvm "$@"'

    def __init__(self, host: KvmHost, user: str) -> None:
        self.host = host
        self.user = user
        self.launcher = user
        make = "mktemp -d /tmp/e2e.XXXXXX; mktemp -d /scratch/e2e.XXXXXX"
        self.folder, self.scratch = host.shell(make, user=user).split()
        self._count = 0

    def close(self) -> None:
        """Remove the folders."""
        self.host.shell(f"rm -rf {self.folder} {self.scratch}")

    def shell(self, script: str) -> str:
        """Run a script that must succeed, as the lab's user in its folder; return its output."""
        return self.host.shell(f"cd {self.folder}\n{script}", user=self.user)

    def disk(self, name: str, size_mib: int) -> str:
        """Make a disk image full of zeros and return its path."""
        self.shell(f"truncate -s {size_mib}M {name}")
        return f"{self.folder}/{name}"

    def start(
        self,
        *options: str,
        kernel: Kernel = BUILTIN,
        script: str = "true",
        end: str = "poweroff",
        root: str | None = ROOT_SQUASHFS,
        params: str = "quiet",
        before: Sequence[str] = ("--extended-status",),
    ) -> Vm:
        """Start a guest that runs ``script`` and then ends as ``end`` says.

        Args:
            options: more options of ``crosvm run``; disks come after the root disk.
            kernel: which kernel.
            script: shell commands for the guest, with the function ``fact``.
            end: poweroff, reboot, panic or stay.
            root: the root disk, /dev/vda; ``None`` for none.
            params: the kernel's command line.
            before: options before the command.
        """
        self._count += 1
        name = f"vm{self._count}"
        words = list(options) if root is None else ["-r", root, *options]
        encoded = base64.b64encode((_PRELUDE + script).encode()).decode()
        if len(encoded) <= _MAX_INLINE_CHARS:
            where = f"crosvm.run={encoded}"
        else:
            disks = sum(word in _DISK_OPTIONS for word in words)
            where = f"crosvm.script=/dev/vd{chr(ord('a') + disks)}"
            words += ["--block", f"path={self._script_disk(name, script)},ro"]
        if kernel.initrd is not None:
            words += ["-i", kernel.initrd]
        words += ["-s", f"{self.folder}/{name}.sock", "-p", f"{params} {where} crosvm.end={end}"]
        return self.run(name, [*before, "run", *words, kernel.path])

    def run(self, name: str, words: Sequence[str]) -> Vm:
        """Start ``crosvm WORDS``; its process id is in the file ``NAME.pid``."""
        argv = ["sh", "-c", f'echo $$ >"$0.pid"; {self.launch}', f"{self.folder}/{name}", *words]
        command = self.host.start(argv, cwd=self.folder, user=self.launcher)
        return Vm(self.host, command, self.folder, name)

    def _script_disk(self, name: str, script: str) -> str:
        path = f"{self.folder}/{name}.script"
        data = (_PRELUDE + script).encode()
        self.host.write(path, data + bytes(-len(data) % 4096))
        return path
