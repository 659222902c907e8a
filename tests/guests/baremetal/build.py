# SPDX-License-Identifier: BSD-3-Clause
"""Build the bare-metal guests with the host's gcc: small programs without an operating system.

Dozens of tests want the same few of them, so ``.cache/baremetal`` keeps what was built, under a
hash of the sources and of the command.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Final

SOURCES: Final = Path(__file__).parent
KEPT: Final = Path(__file__).parents[3] / ".cache" / "baremetal"

# No SSE: a KVM without hardware virtualization emulates supervisor code, and knows little of it.
CFLAGS: Final = [
    "-std=gnu11",
    "-O2",
    "-Wall",
    "-Wextra",
    "-Werror",
    "-Wno-main",
    "-Wno-array-bounds",
    "-ffreestanding",
    "-fno-pic",
    "-fno-pie",
    "-fno-stack-protector",
    "-fno-asynchronous-unwind-tables",
    "-fcf-protection=none",
    "-mno-red-zone",
    "-mgeneral-regs-only",
    "-mno-sse",
    "-fno-tree-loop-distribute-patterns",
]
LDFLAGS: Final = ["-nostdlib", "-static", "-no-pie", "-Wl,--build-id=none", "-Wl,-z,noexecstack"]


def build_guest(name: str, directory: Path, *, pvh: bool = False) -> Path:
    """Compile guest ``name`` into ``directory`` and return the ELF file.

    It is entered in long mode; with ``pvh`` in protected mode, as a PVH note in it says.

    Raises:
        RuntimeError: the compiler refused; its words are in the message.
    """
    output = directory / f"{name}{'-pvh' if pvh else ''}.elf"
    command = ["gcc", *CFLAGS, *LDFLAGS, *(["-DPVH"] if pvh else [])]
    command += ["-T", str(SOURCES / "guest.ld"), "-I", str(SOURCES)]
    parts = [SOURCES / "start.S", SOURCES / "interrupt.S", SOURCES / f"{name}.c"]
    own = SOURCES / f"{name}.S"
    command += map(str, [*parts, own] if own.exists() else parts)
    kept = KEPT / hashlib.sha256(f"{_state()} {command}".encode()).hexdigest()
    if kept.exists():
        shutil.copyfile(kept, output)
        output.chmod(0o755)
        return output
    command += ["-o", str(output)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    if result.returncode:
        raise RuntimeError(f"{name}: {result.stderr}")
    with suppress(OSError):  # the project may be read-only
        _keep(output, kept)
    return output


def _keep(guest: Path, kept: Path) -> None:
    kept.parent.mkdir(parents=True, exist_ok=True)
    fresh = kept.with_name(f"{kept.name}.{os.getpid()}")  # others may build the same meanwhile
    shutil.copyfile(guest, fresh)
    fresh.rename(kept)


@cache
def _state() -> str:
    """Return a hash of all sources, and which compiler there is."""
    digest = hashlib.sha256()
    for path in sorted(
        path for path in SOURCES.iterdir() if path.suffix in (".c", ".h", ".S", ".ld")
    ):
        digest.update(path.name.encode() + b"\0" + path.read_bytes())
    compiler = Path(shutil.which("gcc") or "gcc").resolve()
    stamp = compiler.stat().st_mtime_ns if compiler.exists() else 0
    return f"{digest.hexdigest()} {compiler} {stamp}"
