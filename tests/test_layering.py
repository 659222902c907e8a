# SPDX-License-Identifier: BSD-3-Clause
"""Imports point down only, in no circle; files say their licence and grow not without bound."""

from __future__ import annotations

import ast
from configparser import ConfigParser
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from seccomp.syscalls import ARCHITECTURES

if TYPE_CHECKING:
    from collections.abc import Collection

ROOT = Path(__file__).parent.parent
ALLOWED: dict[str, frozenset[str]] = {
    "sys_util": frozenset(),
    "seccomp": frozenset({"sys_util"}),
    "kernel_loader": frozenset({"sys_util"}),
    "kvm": frozenset({"sys_util"}),
    "engine": frozenset({"sys_util"}),
    "disk": frozenset({"sys_util"}),
    "devices": frozenset({"sys_util", "engine", "disk"}),
    "jail": frozenset({"sys_util", "seccomp"}),
    "crosvm_py": frozenset(
        {"sys_util", "seccomp", "kernel_loader", "kvm", "devices", "disk", "jail"}
    ),
}
# What every folder of crosvm_py/ may use of it: facts, and what concerns the whole program.
GROUND = frozenset(
    f"crosvm_py.{name}"
    for name in (
        *("bundle", "care", "config", "end_signals", "exit_status", "interpreter", "leaving"),
        *("api_socket", "requests", "socket_path"),
    )
)
PROTOCOLS = frozenset(
    f"crosvm_py.{name}.protocol"
    for name in ("control", "device_process", "file_parser", "opener", "warden")
)
BELOW_CROSVM_PY = ALLOWED["crosvm_py"]
# What may be used in folders below those, beside the folder itself: packages, or single modules.
# A process is forked by another one, which for that alone names the module in which it begins.
ALLOWED_BELOW: dict[str, frozenset[str]] = {
    "crosvm_py.cli.grammar": frozenset({"sys_util"}),
    "crosvm_py.cli.run_options": frozenset(
        {
            *("sys_util", "devices"),
            *("crosvm_py.cli.grammar", "crosvm_py.care", "crosvm_py.config"),
            *("crosvm_py.api_socket", "crosvm_py.file_parser", "crosvm_py.vm_config"),
        }
    ),
    "crosvm_py.cli": frozenset(
        {
            "crosvm_py.vm_config",
            *(BELOW_CROSVM_PY | GROUND),
            *("crosvm_py.kinds", "crosvm_py.control.socket_client", "crosvm_py.doctor"),
            *("crosvm_py.guest", "crosvm_py.file_parser"),
            *("crosvm_py.run", "crosvm_py.run_plan", "crosvm_py.policy_record"),
            *("crosvm_py.log", "crosvm_py.inherited", "crosvm_py.tunables", "crosvm_py.version"),
            "crosvm_py.pool.pool",
        }
    ),
    "crosvm_py.api": frozenset(
        {
            *("sys_util", "devices", "crosvm_py.kinds.later", "crosvm_py.kinds.order"),
            *("crosvm_py.version", "crosvm_py.vm_config"),
        }
        | GROUND
    ),
    "crosvm_py.client": frozenset({"sys_util", "crosvm_py.vm_config"}),
    "crosvm_py.cloud_hypervisor": frozenset(
        {
            *(BELOW_CROSVM_PY | GROUND | PROTOCOLS),
            *("crosvm_py.api", "crosvm_py.cli.output", "crosvm_py.client"),
            *("crosvm_py.inherited", "crosvm_py.machine"),
            *("crosvm_py.operations", "crosvm_py.run", "crosvm_py.tunables"),
            *("crosvm_py.vm_config", "crosvm_py.vmm"),
        }
    ),
    "crosvm_py.guest": frozenset({"sys_util"}),
    "crosvm_py.requests": frozenset({"sys_util", "devices"}),
    "crosvm_py.doctor": BELOW_CROSVM_PY | {"crosvm_py.machine.core_scheduling"},
    "crosvm_py.console": BELOW_CROSVM_PY | GROUND | {"crosvm_py.relay.outlet"},
    "crosvm_py.manual": frozenset(
        {
            *("sys_util", "crosvm_py.cli", "crosvm_py.cloud_hypervisor.remote"),
            *("crosvm_py.version", "crosvm_py.vm_config"),
        }
    ),
    "crosvm_py.net": BELOW_CROSVM_PY | GROUND,
    "crosvm_py.kinds": BELOW_CROSVM_PY | GROUND | {"crosvm_py.console", "crosvm_py.net"},
    "crosvm_py.machine": BELOW_CROSVM_PY | GROUND,
    "crosvm_py.vmm": frozenset(
        {
            *(BELOW_CROSVM_PY | GROUND | PROTOCOLS),
            *("crosvm_py.kinds", "crosvm_py.machine", "crosvm_py.console", "crosvm_py.net"),
            *("crosvm_py.warden.start", "crosvm_py.file_parser", "crosvm_py.relay"),
            "crosvm_py.control.keeper",
        }
    ),
    "crosvm_py.file_parser": BELOW_CROSVM_PY
    | {
        *("crosvm_py.bundle", "crosvm_py.exit_status", "crosvm_py.leaving"),
        *("crosvm_py.guest.description", "crosvm_py.vm_config"),
    },
    "crosvm_py.relay": frozenset({"sys_util"}),
    "crosvm_py.warden": frozenset(
        {
            *(BELOW_CROSVM_PY | GROUND | PROTOCOLS),
            *("crosvm_py.kinds", "crosvm_py.device_process.process"),
        }
    ),
    "crosvm_py.device_process": BELOW_CROSVM_PY | GROUND | PROTOCOLS | {"crosvm_py.kinds"},
    "crosvm_py.operations": frozenset(
        {
            *(BELOW_CROSVM_PY | GROUND),
            *("crosvm_py.kinds", "crosvm_py.machine", "crosvm_py.vmm"),
        }
    ),
    "crosvm_py.pool": BELOW_CROSVM_PY
    | GROUND
    | {
        *("crosvm_py.__main__", "crosvm_py.cli", "crosvm_py.console", "crosvm_py.inherited"),
        *("crosvm_py.config", "crosvm_py.kinds", "crosvm_py.vmm"),
        *("crosvm_py.log", "crosvm_py.version", "crosvm_py.warden"),
    },
    "crosvm_py.control": frozenset(
        {"sys_util", "seccomp", "jail", "crosvm_py.api", "crosvm_py.opener"} | GROUND
    ),
    "crosvm_py.opener": BELOW_CROSVM_PY | GROUND | PROTOCOLS | {"crosvm_py.kinds"},
    "crosvm_py.vm_config": frozenset({"sys_util", "devices", "crosvm_py.config"}),
}
SOURCES = [path for folder in ALLOWED for path in sorted((ROOT / folder).rglob("*.py"))]
TESTS = sorted((ROOT / "tests").rglob("*.py"))
MAX_LINES = 400
# Tables of the kernel's ABI are as long as the ABI.
ABI_TABLES = {
    f"seccomp/{table}_{arch}.py" for table in ("syscalls", "constants") for arch in ARCHITECTURES
}
# The protocol of a table of connections, whose calls take connections, which keep their table: no
# type without the other. The first imports the second for that alone, so this import is forgiven.
MUTUAL = ("devices.virtio.vsock.hub", "devices.virtio.vsock.connection")

Graph = dict[str, set[str]]


@cache
def imports(path: Path) -> list[ast.Import | ast.ImportFrom]:
    """Return what ``path`` imports anywhere: late and for types, too."""
    nodes = ast.walk(ast.parse(path.read_text()))
    return [node for node in nodes if isinstance(node, ast.Import | ast.ImportFrom)]


def module_name(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def imported_modules(path: Path, modules: Collection[str]) -> set[str]:
    """Return those of ``modules`` that ``path`` imports."""
    found: set[str] = set()
    for node in imports(path):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif node.module:
            names = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= {name if name in modules else node.module for name in names}
    return found & set(modules)


def circle(graph: Graph) -> list[str]:
    """Return the modules of one circle of imports, its first again at its end; or nothing."""
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return list(error.args[1])
    return []


def imported_folders(path: Path) -> set[str]:
    found: set[str] = set()
    for node in imports(path):
        if isinstance(node, ast.Import):
            found |= {alias.name.partition(".")[0] for alias in node.names}
        elif node.module:
            found.add(node.module.partition(".")[0])
    return found & ALLOWED.keys()


@pytest.mark.parametrize("folder", ALLOWED)
def test_imports_point_down(folder: str) -> None:
    files = [path for path in SOURCES if path.is_relative_to(ROOT / folder)]
    used = {str(path.relative_to(ROOT)): imported_folders(path) for path in files}
    allowed = ALLOWED[folder] | {folder}
    assert {name: found - allowed for name, found in used.items() if found - allowed} == {}


def is_within(module: str, package: str) -> bool:
    return f"{module}.".startswith(f"{package}.")


@pytest.mark.parametrize("folder", ALLOWED_BELOW)
def test_imports_point_down_below_a_folder_too(folder: str) -> None:
    modules = {module_name(path): path for path in SOURCES}
    allowed = {folder, *ALLOWED_BELOW[folder]}
    files = [(name, path) for name, path in modules.items() if is_within(name, folder)]
    assert len(files) > 1, "the folder moved and this test reads nothing"
    wrong = [
        f"{name} imports {used}"
        for name, path in files
        for used in sorted(imported_modules(path, modules.keys()))
        if not any(is_within(used, package) for package in allowed)
    ]
    assert wrong == []


def test_an_architecture_is_known_to_the_seam_alone() -> None:
    modules = {module_name(path): path for path in SOURCES}
    x86 = "crosvm_py.machine.x86_64"
    outside = [(name, path) for name, path in modules.items() if not is_within(name, x86)]
    users = {
        name
        for name, path in outside
        if any(is_within(used, x86) for used in imported_modules(path, modules.keys()))
    }
    assert users == {"crosvm_py.machine.arch"}


def test_every_folder_of_the_program_has_a_rule() -> None:
    folders = {path.parent.name for path in (ROOT / "crosvm_py").glob("*/__init__.py")}
    assert {f"crosvm_py.{name}" for name in folders} <= ALLOWED_BELOW.keys()


def test_imports_form_no_circle() -> None:
    modules = {module_name(path): path for path in SOURCES}
    graph = {name: imported_modules(path, modules.keys()) for name, path in modules.items()}
    user, used = MUTUAL
    graph[user].remove(used)
    assert circle(graph) == []


@pytest.mark.parametrize(
    ("graph", "found"),
    [
        pytest.param({"a": {"b", "c"}, "b": {"c"}, "c": set()}, set(), id="none"),
        pytest.param({"a": {"a"}}, {"a"}, id="itself"),
        pytest.param({"a": {"b"}, "b": {"c"}, "c": {"d", "b"}}, {"b", "c"}, id="below another"),
        pytest.param({"a": {"b"}, "b": {"c"}, "c": {"a"}}, {"a", "b", "c"}, id="of three"),
    ],
)
def test_circle_is_found_where_there_is_one(graph: Graph, found: set[str]) -> None:
    assert set(circle(graph)) == found


def test_imports_of_every_kind_are_seen(tmp_path: Path) -> None:
    path = tmp_path / "module.py"
    path.write_text(
        "import a\n"
        "from b import c, VALUE\n"
        "if TYPE_CHECKING:\n    from d import Type\n"
        "def late():\n    import e.f\n"
        "import os\n"
    )
    modules = {"a", "b", "b.c", "d", "e", "e.f", "other"}
    assert imported_modules(path, modules) == {"a", "b", "b.c", "d", "e.f"}


def test_sources_have_licence_and_bounded_length() -> None:
    unlicensed, too_long = [], []
    for path in SOURCES + TESTS:
        name, lines = str(path.relative_to(ROOT)), path.read_text().splitlines()
        has_interpreter = bool(lines) and lines[0].startswith("#!")
        if lines and lines[has_interpreter] != "# SPDX-License-Identifier: BSD-3-Clause":
            unlicensed.append(name)
        if len(lines) > MAX_LINES and name not in ABI_TABLES:
            too_long.append(name)
    assert unlicensed == []
    assert too_long == []


def test_native_sources_have_licence_and_bounded_length_too() -> None:
    found = [path for kind in ("src/*.rs", "ffi/*.c", "ffi/*.h") for path in ROOT.glob(f"*/{kind}")]
    assert len(found) > 20, "the folders moved and this test reads nothing"
    texts = {str(path.relative_to(ROOT)): path.read_text() for path in found}
    licence = "SPDX-License-Identifier: BSD-3-Clause"
    assert [name for name, text in texts.items() if licence not in text.partition("\n")[0]] == []
    assert [name for name, text in texts.items() if text.count("\n") > MAX_LINES] == []


def test_tests_are_seen_by_the_layering_test() -> None:
    assert min(len(SOURCES), len(TESTS)) > 40, "the folders moved and this test reads nothing"


def test_every_folder_is_installed() -> None:
    config = ConfigParser()
    config.read(ROOT / "setup.cfg")
    folders = {str(path.parent.relative_to(ROOT)).replace("/", ".") for path in SOURCES}
    assert set(config["options"]["packages"].split()) == folders


def test_the_packages_are_ours() -> None:
    import seccomp
    import sys_util

    for package in (seccomp, sys_util):
        assert Path(str(package.__file__)).is_relative_to(ROOT)
