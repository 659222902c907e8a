# SPDX-License-Identifier: BSD-3-Clause
"""What setup.cfg cannot say: which native modules cffi builds, and two programs in Rust.

The engine, the client of the pool and the loop of the forge are built where there is a cargo that
is new enough, unless ``CROSVM_PY_ENGINE=no`` is in the environment. Without them Python does the
same.
"""

import os
import re
import shutil
import subprocess
from pathlib import Path

from setuptools import setup

# setuptools has replaced distutils by its own by now.
from distutils.command.build_scripts import build_scripts  # isort: skip

OLDEST_CARGO = (1, 85)  # see engine/Cargo.toml


def has_cargo() -> bool:
    """Return whether the engine can be built."""
    if not shutil.which("cargo"):
        return False
    told = subprocess.run(["cargo", "--version"], capture_output=True, text=True, check=False)
    version = re.match(r"cargo (\d+)\.(\d+)", told.stdout)
    return version is not None and (int(version[1]), int(version[2])) >= OLDEST_CARGO


def build_program(folder: str, name: str) -> str:
    """Build the program of a crate, which depends on no other crate; return its path."""
    crate = Path(__file__).parent / folder
    version = re.search(r'VERSION: Final = "(.+)"', Path("crosvm_py/version.py").read_text())
    if version is None:
        raise ValueError("crosvm_py/version.py has no version")
    command = ["cargo", "build", "--release", "--locked", "--offline", "--quiet"]
    environment = os.environ | {"CROSVM_PY_VERSION": version[1]}
    subprocess.run([*command, "--target-dir", "target"], cwd=crate, env=environment, check=True)
    return f"{folder}/target/release/{name}"


modules = [
    "kvm/ffi/build_kvm.py:ffibuilder",
    "sys_util/ffi/build_linux.py:ffibuilder",
]
programs = []
if os.environ.get("CROSVM_PY_ENGINE") != "no" and has_cargo():
    modules.append("engine/ffi/build_engine.py:ffibuilder")
    programs += [
        build_program("launcher", "crosvm-pool-client"),
        build_program("forge", "crosvm-forge"),
    ]


class BuildScripts(build_scripts):
    """Install compiled programs beside the script, which is the only place where it finds them."""

    def run(self) -> None:
        """Copy them as they are; for the others, see setup.cfg."""
        super().run()
        for program in programs:
            self.copy_file(program, self.build_dir)


setup(cffi_modules=modules, cmdclass={"build_scripts": BuildScripts})
