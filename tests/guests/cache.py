# SPDX-License-Identifier: BSD-3-Clause
"""Build artefacts once: each is a folder named after the content of everything that goes in."""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

PROJECT: Final = Path(__file__).resolve().parents[2]
CACHE: Final = PROJECT / ".cache"
LOG_TAIL_BYTES: Final = 3000
_STARTED: Final = time.monotonic()


class BuildError(Exception):
    """An artefact could not be made; the message says which step and why."""


def say(message: str) -> None:
    """Print one progress line."""
    sys.stderr.write(f"[{time.monotonic() - _STARTED:6.1f} s] {message}\n")
    sys.stderr.flush()


def _chunks(item: str | Path) -> Iterator[bytes]:
    if isinstance(item, str):
        yield item.encode()
    elif item.is_dir():
        for path in sorted(item.rglob("*")):
            if path.is_file() and "__pycache__" not in path.parts:
                yield str(path.relative_to(item)).encode()
                yield path.read_bytes()
    else:
        yield item.name.encode()
        yield item.read_bytes()


def content_key(inputs: Sequence[str | Path]) -> str:
    """Return a short hash over strings, files and folders, names included."""
    digest = hashlib.sha256()
    for item in inputs:
        for chunk in _chunks(item):
            digest.update(len(chunk).to_bytes(8, "little"))
            digest.update(chunk)
    return digest.hexdigest()[:16]


def artefact(
    area: str, name: str, inputs: Sequence[str | Path], build: Callable[[Path], None]
) -> Path:
    """Return the folder of an artefact, after building it when no folder has its content key.

    ``build`` fills an empty folder; only a finished one gets the final name, and the versions
    before it are removed. Two builders at once wait for each other.
    """
    home = CACHE / area
    home.mkdir(parents=True, exist_ok=True)
    final = home / f"{name}-{content_key(inputs)}"
    with (home / f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if final.is_dir():
            return final
        started = time.monotonic()
        say(f"{name}: building")
        older = [path for path in home.glob(f"{name}-*") if path.name != f"{name}-partial"]
        partial = home / f"{name}-partial"
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir()
        build(partial)
        partial.rename(final)
        for path in older:
            shutil.rmtree(path)
        say(f"{name}: done in {time.monotonic() - started:.1f} s")
    return final


def run(step: str, argv: Iterable[str | Path], *, cwd: Path | None = None) -> str:
    """Run a build command quietly and return its output.

    Raises:
        BuildError: the command is missing or failed; with the end of what it printed.
    """
    words = [os.fspath(word) for word in argv]
    try:
        done = subprocess.run(
            words,
            cwd=cwd,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            check=False,
        )
    except FileNotFoundError as error:
        raise BuildError(f"{step}: {words[0]} is not installed (tests/setup.sh does it)") from error
    output = done.stdout.decode(errors="replace")
    if done.returncode:
        raise BuildError(f"{step}: status {done.returncode}\n{output[-LOG_TAIL_BYTES:]}")
    return output


def need_root(what: str) -> None:
    """Refuse to go on as an ordinary user, where files must belong to root.

    Raises:
        BuildError: not root.
    """
    if os.geteuid():
        raise BuildError(f"{what} needs root: device nodes and file owners")
