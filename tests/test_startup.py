# SPDX-License-Identifier: BSD-3-Clause
"""A run imports nothing that it does not need: start-up is mostly imports.

``python -X importtime -m crosvm_py version`` shows what each of them costs.
"""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent

# What a run may import is everything but these, which cost milliseconds each and have a lighter
# way beside them: sys_util.log, crosvm_py.cli.grammar.options, and those in LIGHTER.
DEAR = {
    *(
        "argparse",
        "asyncio",
        "ctypes",
        "dataclasses",
        "datetime",
        "enum",
        "importlib",
        "inspect",
        "json",
    ),
    *("logging", "msgspec", "multiprocessing", "pathlib", "pyseccomp", "random", "re"),
    *("selectors", "shutil"),
    *("signal", "socket", "subprocess", "tempfile", "traceback", "typing", "uuid", "warnings"),
}
BUILD_TOOLS = {
    *("seccomp/generate_tables.py", "kvm/ffi/build_kvm.py", "sys_util/ffi/build_linux.py")
}
PACKAGES = ("crosvm_py", "devices", "disk", "jail", "kernel_loader", "kvm", "seccomp", "sys_util")
SOURCES = [
    path
    for package in PACKAGES
    for path in sorted((ROOT / package).rglob("*.py"))
    if str(path.relative_to(ROOT)) not in BUILD_TOOLS
]
LIGHTER = {
    "dataclasses": "sys_util.facts (fact)",
    "importlib": "sys_util.modules",
    "msgpack": "sys_util.msgpack",
    **{name: f"sys_util.{name}" for name in ("enum", "signal", "socket", "typing")},
}
# These need msgspec, which needs all of typing. Nothing that a run needs imports them.
DEAR_PACKAGES = ("crosvm_py/vm_config/",)

# With every kind of device, the control socket and its requests. A module costs 50 to 100 us.
# Python 3.13 has some more that others import.
MOST_MODULES = 412 if sys.version_info >= (3, 13) else 409

# Everything that any process of a run imports, with the device kinds.
RUN = """
import sys
sys.path[:0] = {path!r}
from crosvm_py.bundle_maker import import_all
import_all()
print(*sorted(sys.modules))
"""


def imports_at_start(path: Path) -> set[str]:
    """Return the modules that ``path`` imports whenever it is imported itself."""
    found: set[str] = set()
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module)
    return found


def test_sources_take_the_lighter_way() -> None:
    wrong = [
        f"{path.relative_to(ROOT)}: import from {LIGHTER[name]} instead of {name}"
        for path in SOURCES
        if not str(path.relative_to(ROOT)).startswith(DEAR_PACKAGES)
        for name in sorted(imports_at_start(path) & LIGHTER.keys())
    ]
    assert wrong == []


@pytest.fixture(scope="module")
def modules() -> set[str]:
    """Return every module that some process of a run imports."""
    script = RUN.format(path=[str(ROOT), *sys.path])
    run = subprocess.run(
        [sys.executable, "-I", "-S", "-c", script], capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stderr
    return set(run.stdout.split())


def test_a_run_imports_nothing_dear(modules: set[str]) -> None:
    # Python's own threading imports it since version 3.13.
    newer = {"warnings"} if sys.version_info >= (3, 13) else set()
    assert modules & DEAR == newer


def test_a_run_imports_few_modules(modules: set[str]) -> None:
    assert len(modules) < MOST_MODULES
