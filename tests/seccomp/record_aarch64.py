# SPDX-License-Identifier: BSD-3-Clause
"""``python3 -m tests.seccomp.record_aarch64`` records the calls of CPython and glibc on 64-bit Arm.

Runs ``aarch64_work.py`` in QEMU's user-mode emulation with the Python of each Debian release, as
root and with package network, and writes ``recorded_aarch64.txt``, which tests hold against the
policies. Nothing else ever runs it.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Final

from tests.guests import debian, newer
from tests.guests.cache import artefact

HERE: Final = Path(__file__).parent
WORK: Final = HERE / "aarch64_work.py"
RECORD: Final = HERE / "recorded_aarch64.txt"
PACKAGES: Final = ("base-files", "python3")
HEAD: Final = """\
# What CPython and glibc of Debian {releases} ask the kernel for on 64-bit
# Arm when they do the work of each process, as QEMU's user-mode emulation tells it. Addresses,
# strings and structures are 0x1000. Made by python3 -m tests.seccomp.record_aarch64.
"""

_CALL: Final = re.compile(r"^\d+ (\w+)\((.*?)\) = ", re.MULTILINE)
_WHOSE: Final = re.compile(r"^=(\w+)$")
_POINTED: Final = re.compile(r'"[^"]*"|\{[^}]*\}')
_LOWEST_ADDRESS: Final = 1 << 20
# Words that QEMU writes differently from us; the numbers are flags of recvmsg(2).
_OTHER_WORDS: Final = {
    "NULL": "0",
    "R_OK": "4",
    "0x40000000": "MSG_CMSG_CLOEXEC",
    "0x40000040": "MSG_CMSG_CLOEXEC|MSG_DONTWAIT",
}
# This call is our own: it writes the line that says which process's work follows.
_OWN: Final = re.compile(r"^\d+ write\(2,")


def tree(suite: str) -> Path:
    """Return a folder with a Python for 64-bit Arm; unpacked only, which needs no emulation."""

    def fill(target: Path) -> None:
        debian.tree(target / "tree", PACKAGES, suite, foreign="arm64")

    return artefact("guests", f"arm64-{suite}", [suite, *PACKAGES], fill) / "tree"


def emulator() -> Path:
    """Return QEMU's user-mode emulator, out of its package."""
    package = "qemu-user-static"
    inputs = [package, debian.SUITE]
    folder = artefact("guests", package, inputs, lambda target: debian.unpack(package, target))
    return folder / "usr/bin/qemu-aarch64-static"


def recorded(suite: str) -> dict[str, list[str]]:
    """Return the calls of each process's work, the first of each kind."""
    root = tree(suite)
    (python,) = root.glob("usr/bin/python3.[0-9]*[0-9]")
    with tempfile.TemporaryDirectory() as folder:
        argv: list[str | Path] = [
            emulator(),
            "-strace",
            "-L",
            root,
            python,
            "-I",
            "-B",
            WORK,
            folder,
        ]
        done = subprocess.run(argv, capture_output=True, text=True, check=True)
    found: dict[str, list[str]] = {}
    calls: list[str] = []
    for line in done.stderr.splitlines():
        if whose := re.search(r"=(\w+)$", line) if _OWN.match(line) else None:
            calls = found.setdefault(whose[1], [])
        elif call := _CALL.match(line):
            words = [word.strip() for word in _POINTED.sub("0x1000", call[2]).split(",")]
            text = f"{call[1]}({', '.join(plain(word) for word in words)})"
            if text not in calls:
                calls.append(text)
    return found


def plain(word: str) -> str:
    """Write one argument as ``calls.read_call`` reads it, the same in every run."""
    if word in _OTHER_WORDS:
        return _OTHER_WORDS[word]
    try:
        return word if int(word, 0) < _LOWEST_ADDRESS else "0x1000"
    except ValueError:
        return word


def main() -> None:
    """Write the record."""
    suites = (debian.SUITE, newer.SUITE)
    calls: dict[str, dict[str, None]] = {}
    for suite in suites:
        for name, texts in recorded(suite).items():
            calls.setdefault(name, {}).update(dict.fromkeys(texts))
    lines = [f"{name}: {text}\n" for name, texts in calls.items() for text in texts]
    RECORD.write_text(HEAD.format(releases=" and ".join(suites)) + "".join(lines))
    sys.stdout.write(f"{len(lines)} calls in {RECORD.name}\n")


if __name__ == "__main__":
    main()
