# SPDX-License-Identifier: BSD-3-Clause
"""Build ``engine._engine``: the Rust crate in ``engine/`` as a static library, and its C interface.

``setup.py`` names this file only if it finds cargo. Without the engine everything works in Python.
"""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import Final

from cffi import FFI

CRATE: Final = Path(__file__).resolve().parent.parent
TARGET: Final = CRATE / "target"

PREAMBLE: Final = """
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include "engine.h"
"""


def build_library() -> str:
    """Compile the crate, which depends on no other crate; return the path of the library."""
    command = ["cargo", "build", "--release", "--locked", "--offline", "--quiet"]
    subprocess.run([*command, "--target-dir", TARGET], cwd=CRATE, check=True)
    return os.path.relpath(TARGET / "release" / "libcrosvm_engine.a")


def make_builder() -> FFI:
    """Return the builder that ``setup.py`` names."""
    builder = FFI()
    builder.cdef((CRATE / "ffi" / "engine.h").read_text())
    builder.set_source(
        "engine._engine",
        PREAMBLE,
        extra_objects=[build_library()],
        depends=["engine/ffi/engine.h"],
        include_dirs=["engine/ffi"],
        extra_link_args=["-Wl,--exclude-libs,ALL", "-Wl,--gc-sections", "-s"],
    )
    return builder


ffibuilder = make_builder()

if __name__ == "__main__":
    ffibuilder.compile(verbose=False)
