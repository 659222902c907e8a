# SPDX-License-Identifier: BSD-3-Clause
"""Programs of the host that make guests: are they there, how do they end; and progress."""

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
    """Lines for people: which step of how many, what is done in it, and when.

    ``tell`` gets the lines, ``steps`` is how many steps there will be.
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
        """Tell more of the step that is being done."""
        seconds = time.monotonic() - self._started
        self._tell(f"guest make: {self._step}/{self._steps} [{seconds:3.0f} s] {what}")


def need(programs: Iterable[tuple[str, str]], files: Iterable[tuple[str, str]] = ()) -> None:
    """Refuse to begin where something is not installed: all of it is named in one line.

    Args:
        programs: name and Debian package of each program.
        files: path and Debian package of each file.

    Raises:
        ConfigError: with what is missing and the packages that have it.
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
        HostError: it failed; with the line that says why.
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
    """Return the error of a program that failed, with its first line that names an error."""
    lines = [line.strip() for line in output.decode(errors="replace").splitlines() if line.strip()]
    wrong = [line for line in lines if line.startswith(("E:", "FATAL", "error"))]
    reason = (wrong or lines[-1:] or ["no reason given"])[0][:_REASON_CHARS]
    return HostError(f"guest make: {what}:", f"{program}: status {status}: {reason}")


def plain_environment() -> dict[str, str]:
    """Return our environment with messages in English and nothing that asks questions."""
    return {**os.environ, "LC_ALL": "C.UTF-8", "DEBIAN_FRONTEND": "noninteractive"}
