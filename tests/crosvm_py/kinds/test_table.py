# SPDX-License-Identifier: BSD-3-Clause
"""The table of device kinds: each entry is what its module and its policy say."""

from __future__ import annotations

import ast
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

from crosvm_py.kinds.order import pack_spec, unpack_spec
from crosvm_py.kinds.table import DEVICE_KINDS, build_device
from devices.virtio.block.spec import BlockSpec
from devices.virtio.counters import CELL_COUNT, COUNTER_NAMES
from devices.virtio.rng.device import Rng, RngSpec
from seccomp import load_policy
from sys_util.errors import ProtocolError

ROOT = Path(__file__).parents[3]

each_kind = pytest.mark.parametrize("name", sorted(DEVICE_KINDS))


@each_kind
def test_policy_of_a_kind_compiles(name: str) -> None:
    assert load_policy(DEVICE_KINDS[name].policy_name).bpf


@each_kind
def test_module_of_a_kind_has_a_device_with_its_policy(name: str) -> None:
    kind = DEVICE_KINDS[name]
    module = import_module(kind.module)
    classes = [value for value in vars(module).values() if isinstance(value, type)]
    policies = {getattr(each, "seccomp_policy", None) for each in classes}
    assert kind.policy_name in policies


@each_kind
def test_each_counter_of_a_kind_has_a_cell_and_a_name_of_its_own(name: str) -> None:
    names = [*COUNTER_NAMES, *DEVICE_KINDS[name].counters]
    assert len(names) <= CELL_COUNT
    assert len(set(names)) == len(names)


def test_every_policy_of_a_device_has_a_kind() -> None:
    files = {path.stem for path in (ROOT / "seccomp" / "x86_64").glob("*_device.policy")}
    used = {kind.policy_name for kind in DEVICE_KINDS.values()}
    assert files - {"common_device"} == used


PRELOAD = """
import sys
from crosvm_py.kinds.table import DEVICE_KINDS
import crosvm_py.warden.warden
DEVICE_KINDS[{name!r}].preload()
before = set(sys.modules)
{build}
print(sorted(set(sys.modules) - before))
"""


@pytest.mark.slow
@each_kind
def test_device_imports_nothing_of_ours_once_it_is_preloaded(name: str) -> None:
    """Else it would fail in its jail, where there is no file to import."""
    kind = DEVICE_KINDS[name]
    source = Path(sys.modules[kind.build.__module__].__file__ or "").read_text()
    (function,) = (
        node
        for node in ast.parse(source).body
        if isinstance(node, ast.FunctionDef) and node.name == kind.build.__name__
    )
    wanted = [node for node in ast.walk(function) if isinstance(node, ast.ImportFrom)]
    build = "\n".join(ast.unparse(node) for node in wanted)
    done = subprocess.run(
        [sys.executable, "-c", PRELOAD.format(name=name, build=build)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == "[]"


def test_packed_spec_builds_the_device() -> None:
    device = build_device("rng", pack_spec(RngSpec(max_fill_bytes=77)), ())
    assert isinstance(device, Rng)
    assert device.device_type == 4


def test_packed_spec_has_every_field_and_what_is_changed() -> None:
    spec = BlockSpec("/secret", read_only=True, id="data")
    packed = pack_spec(spec, path="", num_queues=3)
    assert unpack_spec(BlockSpec, packed) == BlockSpec("", read_only=True, id="data", num_queues=3)


def test_spec_of_another_kind_is_refused() -> None:
    with pytest.raises(ProtocolError, match="message of unknown type 4"):
        unpack_spec(BlockSpec, pack_spec(RngSpec()))


def test_unknown_kind_has_no_device() -> None:
    with pytest.raises(KeyError, match="floppy"):
        build_device("floppy", b"\x80", ())
