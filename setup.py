# SPDX-License-Identifier: BSD-3-Clause
"""What setup.cfg cannot say: which native modules cffi builds.

The engine is built where there is a cargo that is new enough, unless ``CROSVM_PY_ENGINE=no`` is in
the environment.
"""

import os
import re
import shutil
import subprocess

from setuptools import setup

OLDEST_CARGO = (1, 85)  # see engine/Cargo.toml


def has_cargo() -> bool:
    """Return whether the engine can be built."""
    if not shutil.which("cargo"):
        return False
    told = subprocess.run(["cargo", "--version"], capture_output=True, text=True, check=False)
    version = re.match(r"cargo (\d+)\.(\d+)", told.stdout)
    return version is not None and (int(version[1]), int(version[2])) >= OLDEST_CARGO


modules = [
    "kvm/ffi/build_kvm.py:ffibuilder",
    "sys_util/ffi/build_linux.py:ffibuilder",
]
if os.environ.get("CROSVM_PY_ENGINE") != "no" and has_cargo():
    modules.append("engine/ffi/build_engine.py:ffibuilder")

setup(cffi_modules=modules)
