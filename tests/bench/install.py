# SPDX-License-Identifier: BSD-3-Clause
"""The project as an ordinary installation has it: compiled, without the editable one's finder."""

from __future__ import annotations

import compileall
import shutil
import site
import sys
import sysconfig
import venv
from pathlib import Path
from typing import Final

PROJECT: Final = Path(__file__).parents[2]
PACKAGES: Final = (
    "crosvm_py",
    "devices",
    "disk",
    "jail",
    "kernel_loader",
    "kvm",
    "seccomp",
    "sys_util",
)
ENGINE: Final = "engine"
PROGRAMS: Final = ("crosvm-pool-client", "crosvm-forge")
_LEFT_OUT: Final = shutil.ignore_patterns("__pycache__", "target", "*.c", "*.o")


def install(directory: Path, *, engine: bool = True) -> Path:
    """Install the project as it is now into ``directory`` and return its ``crosvm``.

    Without ``engine`` Python alone serves devices, as where the engine is not built.
    The libraries that it needs are those of the Python that runs this.
    """
    venv.create(directory, symlinks=True)
    paths = {"base": str(directory), "platbase": str(directory)}
    library = Path(sysconfig.get_path("purelib", "venv", paths))
    for package in (*PACKAGES, *([ENGINE] if engine else [])):
        shutil.copytree(PROJECT / package, library / package, ignore=_LEFT_OUT)
    compileall.compile_dir(library, quiet=1)
    (library / "libraries.pth").write_text("".join(f"{path}\n" for path in site.getsitepackages()))
    for name in PROGRAMS:
        program = Path(sys.executable).parent / name
        if engine and program.exists():
            shutil.copy(program, directory / "bin")
    return Path(shutil.copy(PROJECT / "bin" / "crosvm", directory / "bin"))
