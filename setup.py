# SPDX-License-Identifier: BSD-3-Clause
"""What setup.cfg cannot say: native modules, two programs in Rust, manual pages and completions.

The engine, the client of the pool and the loop of the forge are built where there is a cargo that
is new enough, unless ``CROSVM_PY_ENGINE=no`` is in the environment. Without them Python does the
same.
"""

import os
import re
import shutil
import subprocess
import sys
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


def write_manual(library: str) -> list[tuple[str, list[str]]]:
    """Write manual pages and completions from the tables of what is built in ``library``.

    Return where they are installed. They are left out where a package is missing that
    pyproject.toml names for them.
    """
    prefix = Path("build", "prefix").absolute()
    shutil.rmtree(prefix, ignore_errors=True)
    command = [sys.executable, "-m", "crosvm_py.manual", str(prefix)]
    done = subprocess.run(command, cwd=library, check=False, stderr=subprocess.PIPE, text=True)
    if done.returncode:
        sys.stderr.write(f"no manual pages and completions: {done.stderr.strip()[-200:]}\n")
        return []
    found: dict[str, list[str]] = {}
    for path in sorted(prefix.rglob("*")):
        if path.is_file():
            place = str(path.parent.relative_to(prefix))
            found.setdefault(place, []).append(os.path.relpath(path))
    return list(found.items())


class BuildScripts(build_scripts):
    """Install compiled programs beside the script, which is the only place where it finds them.

    It runs when everything else is built, so it writes the manual, too.
    """

    def run(self) -> None:
        """Copy them as they are; for the others, see setup.cfg."""
        super().run()
        library = self.get_finalized_command("build").build_lib
        if Path(library, "crosvm_py").is_dir():  # not for an editable installation
            self.distribution.data_files += write_manual(library)
        for program in programs:
            self.copy_file(program, self.build_dir)


unit = ("lib/systemd/system", ["systemd/crosvm@.service"])
setup(
    cffi_modules=modules,
    cmdclass={"build_scripts": BuildScripts},
    data_files=[unit],
)
