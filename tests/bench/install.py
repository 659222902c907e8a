# SPDX-License-Identifier: BSD-3-Clause
"""The project as an ordinary installation has it: compiled, without the editable one's finder."""

from __future__ import annotations

import compileall
import shutil
import site
import sysconfig
import venv
from pathlib import Path
from typing import Final

PROJECT: Final = Path(__file__).parents[2]
PACKAGES: Final = (
    *("crosvm_py", "devices", "engine", "jail", "kernel_loader", "kvm", "seccomp", "sys_util"),
)
_LEFT_OUT: Final = shutil.ignore_patterns("__pycache__", "target", "*.c", "*.o")


def install(directory: Path) -> Path:
    """Install the project as it is now into ``directory`` and return its ``crosvm``.

    The libraries that it needs are those of the Python that runs this.
    """
    venv.create(directory, symlinks=True)
    paths = {"base": str(directory), "platbase": str(directory)}
    library = Path(sysconfig.get_path("purelib", "venv", paths))
    for package in PACKAGES:
        shutil.copytree(PROJECT / package, library / package, ignore=_LEFT_OUT)
    compileall.compile_dir(library, quiet=1)
    (library / "libraries.pth").write_text("".join(f"{path}\n" for path in site.getsitepackages()))
    return Path(shutil.copy(PROJECT / "bin" / "crosvm", directory / "bin"))
