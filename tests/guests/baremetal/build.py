# SPDX-License-Identifier: BSD-3-Clause
"""Build the bare-metal guests with the host's gcc: small programs without an operating system."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Final

SOURCES: Final = Path(__file__).parent

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
    command = ["gcc", *CFLAGS, *LDFLAGS, *(["-DPVH"] if pvh else []), "-o", str(output)]
    command += ["-T", str(SOURCES / "guest.ld"), "-I", str(SOURCES)]
    parts = [SOURCES / "start.S", SOURCES / "interrupt.S", SOURCES / f"{name}.c"]
    own = SOURCES / f"{name}.S"
    command += map(str, [*parts, own] if own.exists() else parts)
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    if result.returncode:
        raise RuntimeError(f"{name}: {result.stderr}")
    return output
