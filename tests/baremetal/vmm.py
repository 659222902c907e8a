# SPDX-License-Identifier: BSD-3-Clause
"""A running ``crosvm run`` on this machine: its console, its processes, and what is left of it."""

from __future__ import annotations

import os
import pty
import select
import signal
import subprocess
import sys
import termios
import time
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple

from tests.support.warm import run_warm

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import Self

ROOT: Final = Path(__file__).parents[2]
# Everything here takes well below a second; the rest is for a machine that is busy.
PATIENCE_SECONDS: Final = 120.0
# Between two looks: whom we wait for may need the processor.
PAUSE_SECONDS: Final = 0.003


FORGE: Final = "crosvm-forge"
MOULD: Final = "crosvm-mould"
KEEPER: Final = "crosvm-keeper"


class Processes(NamedTuple):
    """The process ids of one VM; devices by name.

    ``control`` has the keeper and the control process; it is empty without a control socket.
    """

    vmm: int
    warden: int
    devices: dict[str, int]
    forge: int
    moulds: list[int]
    control: list[int]

    def all(self) -> list[int]:
        warden = [self.warden, self.forge, *self.moulds, *self.devices.values()]
        return [self.vmm, *warden, *self.control]


def children(pid: int) -> list[int]:
    """Return the children of every thread."""
    found: list[int] = []
    for task in Path(f"/proc/{pid}/task").iterdir():
        found += map(int, (task / "children").read_text().split())
    return found


def name_of(pid: int) -> str:
    return Path(f"/proc/{pid}/comm").read_text().strip()


def named_children(pid: int) -> list[tuple[str, int]]:
    """Return the names and numbers of children; moulds come and go meanwhile."""
    found = []
    for child in children(pid):
        with suppress(FileNotFoundError, ProcessLookupError):
            found.append((name_of(child), child))
    return found


def has_ended(pidfd: int) -> bool:
    """Wait a while for the end of a process."""
    poll = select.poll()
    poll.register(pidfd, select.POLLIN)
    return bool(poll.poll(PATIENCE_SECONDS * 1000))


def eventually(condition: Callable[[], bool]) -> bool:
    """Look again until something is so, for a while."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(PAUSE_SECONDS)
    return True


def run_module(module: str, *words: str | Path) -> subprocess.CompletedProcess[str]:
    """Run a module as a command, to its end."""
    return subprocess.run(
        [sys.executable, "-m", module, *map(str, words)],
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=PATIENCE_SECONDS,
        check=False,
    )


def crosvm(*words: str | Path) -> subprocess.CompletedProcess[str]:
    """Run a command that ends by itself; a run begins as a user's does, in its own interpreter."""
    return run_module("crosvm_py", *words) if "run" in words else run_warm(*words)


class Vmm:
    """One run; use it in a ``with`` statement. With ``terminal`` its stdio is a pseudo-terminal.

    ``verb`` is what stands before the words instead of ``run``. ``before`` is done in the process
    before it becomes the ``program``, which inherits ``fds``.
    """

    def __init__(
        self,
        words: Sequence[str | Path],
        *,
        terminal: bool = False,
        verb: Sequence[str | Path] = ("run",),
        before: Callable[[], None] | None = None,
        fds: Sequence[int] = (),
        program: Sequence[str] = (sys.executable, "-m", "crosvm_py"),
    ) -> None:
        command = [*program, "--extended-status"]
        command += map(str, (*verb, *words))
        self.output = b""
        self._pidfds: list[int] = []
        self.program = -1  # the program's end of the pseudo-terminal
        if terminal:
            self.user, self.program = pty.openpty()
            self.modes = termios.tcgetattr(self.program)
            self.process = subprocess.Popen(
                ["setsid", "--ctty", *command],
                cwd=ROOT,
                stdin=self.program,
                stdout=self.program,
                stderr=subprocess.PIPE,
            )
        else:
            self.process = subprocess.Popen(
                command,
                cwd=ROOT,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                preexec_fn=before,
                pass_fds=fds,
            )
            assert self.process.stdout is not None
            self.user = os.dup(self.process.stdout.fileno())

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self.process.kill()
        for pidfd in self._pidfds:  # a test that failed may have left them stopped
            with suppress(ProcessLookupError):
                signal.pidfd_send_signal(pidfd, signal.SIGKILL)
        self.process.communicate()
        for fd in (self.user, self.program, *self._pidfds):
            if fd >= 0:
                os.close(fd)

    def type(self, keys: bytes) -> None:
        """Send input to the guest's console."""
        if self.process.stdin is not None:
            self.process.stdin.write(keys)
            self.process.stdin.flush()
        else:
            os.write(self.user, keys)

    def wait_for(self, text: bytes) -> None:
        """Read the console until ``text`` is there."""
        deadline = time.monotonic() + PATIENCE_SECONDS
        while text not in self.output:
            ended = self.process.poll() is not None
            ready, _, _ = select.select([self.user], [], [], 0.1)
            data = os.read(self.user, 65536) if ready else b""
            self.output += data
            assert data or not ended, (self.output, self.log())
            assert time.monotonic() < deadline, self.output

    def processes(self) -> Processes:
        """Find the VM's processes and keep hold of them for ``nothing_is_left``."""
        vmm = self.process.pid
        (warden,) = (pid for pid in children(vmm) if name_of(pid) == "crosvm-warden")
        # The guest may run before the forge, which it does not need, has a name of its own.
        assert eventually(lambda: FORGE in dict(named_children(warden)))
        named = named_children(warden)
        devices = {name: pid for name, pid in named if name not in (FORGE, MOULD)}
        (forge,) = (pid for name, pid in named if name == FORGE)
        moulds = [pid for name, pid in named if name == MOULD]
        keepers = [pid for pid in children(vmm) if name_of(pid) == KEEPER]
        kept = [pid for keeper in keepers for pid in children(keeper)]
        control = [*keepers, *kept[:1]]  # the second one is the opener
        found = Processes(vmm, warden, devices, forge, moulds, control)
        for pid in (*found.all()[1:], *kept[1:]):
            with suppress(ProcessLookupError):  # a mould that has ended
                self._pidfds.append(os.pidfd_open(pid))
        return found

    def hold(self, name: str) -> list[int]:
        """Find the vmm's children of this name, and keep hold of them, too."""
        found = [pid for pid in children(self.process.pid) if name_of(pid) == name]
        self._pidfds += map(os.pidfd_open, found)
        return found

    def nothing_is_left(self) -> bool:
        """Wait until every process that ``processes`` or ``hold`` found has ended."""
        return all(has_ended(pidfd) for pidfd in self._pidfds)

    def wait(self) -> int:
        """Wait for the end and return the exit status."""
        return self.process.wait(PATIENCE_SECONDS)

    def is_raw(self) -> bool:
        """Return whether the terminal passes every key through."""
        return not termios.tcgetattr(self.program)[3] & (termios.ICANON | termios.ECHO)

    def is_restored(self) -> bool:
        """Return whether the terminal is in the modes that it was found in."""
        return termios.tcgetattr(self.program) == self.modes

    def hang_up(self) -> None:
        """Close the terminal, as a window that is closed does."""
        os.close(self.user)
        os.close(self.program)
        self.user = self.program = -1

    def signal(self, number: int) -> None:
        self.process.send_signal(number)

    def log(self) -> str:
        """Return what is on stderr; the process has ended."""
        assert self.process.stderr is not None
        return self.process.stderr.read().decode()
