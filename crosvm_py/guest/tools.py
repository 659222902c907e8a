# SPDX-License-Identifier: BSD-3-Clause
"""Find and run the host's programs that make guests, and report progress."""

from __future__ import annotations

import os
import shutil
import subprocess
import time

from sys_util.errors import ConfigError, HostError
from sys_util.typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

_REASON_CHARS: Final = 300


class Progress:
    """Reports progress: the number of the step, the time so far, and what is being done.

    ``tell`` gets the lines; ``steps`` is the number of all steps.
    """

    def __init__(self, tell: Callable[[str], None], steps: int) -> None:
        self._tell = tell
        self._steps = steps
        self._step = 0
        self._started = time.monotonic()

    def step(self, what: str) -> None:
        """Begin the next step."""
        self._step += 1
        self.say(what)

    def say(self, what: str) -> None:
        """Report details of the present step."""
        seconds = time.monotonic() - self._started
        self._tell(f"guest make: {self._step}/{self._steps} [{seconds:3.0f} s] {what}")


def need(programs: Iterable[tuple[str, str]], files: Iterable[tuple[str, str]] = ()) -> None:
    """Check that programs and files are installed; one error names all that are missing.

    Args:
        programs: name and Debian package of each program.
        files: path and Debian package of each file.

    Raises:
        ConfigError: some are missing; it names them and the packages that contain them.
    """
    missing = [(name, package) for name, package in programs if shutil.which(name) is None]
    missing += [(path, package) for path, package in files if not os.path.exists(path)]
    if missing:
        names = ", ".join(name for name, _ in missing)
        packages = " ".join(dict.fromkeys(package for _, package in missing))
        raise ConfigError(f"guest make: not installed: {names} (apt install {packages})")


def run(
    argv: Sequence[str],
    what: str,
    *,
    cwd: str | None = None,
    environment: Mapping[str, str] | None = None,
) -> str:
    """Run a program and return what it printed.

    Raises:
        HostError: it failed; the error contains the line that says why.
    """
    try:
        done = subprocess.run(
            argv,
            cwd=cwd,
            env=plain_environment() | dict(environment or {}),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            check=False,
        )
    except OSError as error:
        raise HostError(f"guest make: {what}:", argv[0]) from error
    if done.returncode:
        raise failure(what, argv[0], done.returncode, done.stderr or done.stdout)
    return done.stdout.decode(errors="replace")


def failure(what: str, program: str, status: int, output: bytes) -> HostError:
    """Return the error for a program that failed, with the first error line of its output."""
    lines = [line.strip() for line in output.decode(errors="replace").splitlines() if line.strip()]
    wrong = [line for line in lines if line.startswith(("E:", "FATAL", "error"))]
    reason = (wrong or lines[-1:] or ["no reason given"])[0][:_REASON_CHARS]
    return HostError(f"guest make: {what}:", f"{program}: status {status}: {reason}")


def plain_environment() -> dict[str, str]:
    """Return our environment, changed for messages in English and no interactive questions."""
    return {**os.environ, "LC_ALL": "C.UTF-8", "DEBIAN_FRONTEND": "noninteractive"}
