# SPDX-License-Identifier: BSD-3-Clause
"""Modules from the bundle: what is used, what is not, and that nothing is old or a stranger's."""

from __future__ import annotations

import marshal
import os
import subprocess
import sys
import traceback
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from crosvm_py import bundle, bundle_maker
from crosvm_py.bundle import MAGIC, Head, make

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).parents[2]
AS_ROOT = pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file away")
NAME = "module_of_a_test_bundle"
SOURCE = "answer = 42\ndef fail():\n    raise ValueError('as planned')\n"


@pytest.fixture(autouse=True)
def usual_imports(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Undo what a bundle does to the imports of this process."""
    monkeypatch.setattr(sys, "path", sys.path[:])
    yield
    bundle.drop()
    sys.modules.pop(NAME, None)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "sources" / f"{NAME}.py"
    path.parent.mkdir()
    path.write_text(SOURCE)
    return path


@pytest.fixture
def file(source: Path, tmp_path: Path) -> Path:
    """Write a bundle with one module; a folder of packages is watched."""
    packages = tmp_path / "packages"
    packages.mkdir()
    code = NAME.encode() + marshal.dumps(compile(SOURCE.replace("42", "'bundled'"), source, "exec"))
    status = source.stat()
    module = (str(source), status.st_mtime_ns, status.st_size, False, 0, len(code))
    watched = [(str(packages), packages.stat().st_mtime_ns)]
    head = Head([str(source.parent)], watched, {NAME: module}, {}, len(code))
    path = tmp_path / "test.bundle"
    path.write_bytes(head.encode() + code)
    path.chmod(0o644)
    return path


def answer() -> object:
    return __import__(NAME).answer


def test_module_in_the_bundle_is_not_looked_for_elsewhere(file: Path, source: Path) -> None:
    assert bundle.use(str(file))
    assert answer() == "bundled"
    module = sys.modules[NAME]
    assert (module.__file__, sys.path) == (str(source), [str(source.parent)])


def test_traceback_of_a_bundled_module_shows_its_lines(file: Path, source: Path) -> None:
    assert bundle.use(str(file))
    try:
        __import__(NAME).fail()
    except ValueError:
        told = traceback.format_exc()
    assert f'"{source}", line 3, in fail\n    raise ValueError' in told


def test_dropped_bundle_is_used_no_more(file: Path) -> None:
    bundle.use(str(file))
    bundle.drop()
    assert answer() == 42


def test_bundle_whose_descriptor_was_closed_is_not_used(file: Path, source: Path) -> None:
    bundle.use(str(file))
    (fd,) = bundle.used_fds()
    other = os.open(source, os.O_RDONLY)
    os.dup2(other, fd)  # as a file does that is opened after ours was closed
    os.close(other)
    assert answer() == 42


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(lambda path: path.write_text(SOURCE + "\n"), id="size"),
        pytest.param(lambda path: os.utime(path, ns=(0, 0)), id="time"),
    ],
)
def test_changed_source_is_imported_as_usual(file: Path, source: Path, change: object) -> None:
    assert callable(change)
    change(source)
    assert not bundle.use(str(file))
    assert answer() == 42


def test_source_that_is_gone_is_not_imported(file: Path, source: Path) -> None:
    source.unlink()
    bundle.use(str(file))
    with pytest.raises(ModuleNotFoundError):
        answer()


def damage(path: Path, content: bytes) -> None:
    path.write_bytes(content)


@pytest.mark.parametrize(
    "spoil",
    [
        pytest.param(lambda path: path.unlink(), id="absent"),
        pytest.param(lambda path: path.chmod(0o664), id="of a group"),
        pytest.param(lambda path: path.chmod(0o646), id="of everybody"),
        pytest.param(
            lambda path: (path.rename(path.with_name("x")), path.symlink_to("x")), id="link"
        ),
        pytest.param(lambda path: damage(path, path.read_bytes()[:-1]), id="cut"),
        pytest.param(lambda path: damage(path, MAGIC), id="no head"),
        pytest.param(lambda path: damage(path, MAGIC + b"\4\0\0\0junk"), id="no marshalled head"),
        pytest.param(lambda path: damage(path, MAGIC[:-2] + b"?\n"), id="other interpreter"),
        pytest.param(lambda path: (path.parent / "packages/new").touch(), id="new package"),
        pytest.param(lambda path: os.chown(path, 65534, 65534), id="of a stranger", marks=AS_ROOT),
    ],
)
def test_what_cannot_be_trusted_is_not_used(file: Path, spoil: object) -> None:
    assert callable(spoil)
    before = sys.path[:]
    spoil(file)
    assert not bundle.use(str(file))
    assert sys.path == before
    assert not any(isinstance(finder, bundle.Bundle) for finder in sys.meta_path)


# Imports what a run imports, and prints what of it came from elsewhere than the bundle.
LIST_OTHERS = """
import sys
sys.path.insert(0, {root!r})
from crosvm_py import bundle, bundle_maker
assert bundle.use({file!r})
from crosvm_py.bundle_maker import import_all
import_all()
for name, module in sys.modules.items():
    spec = module.__spec__
    if spec and spec.has_location and not spec.origin.endswith(".so") and spec.cached != {file!r}:
        print(name)
"""
BEFORE_THE_BUNDLE = {
    *("__future__", "encodings", "encodings.aliases", "encodings.utf_8"),
    *("crosvm_py", "crosvm_py.bundle", "crosvm_py.bundle_maker"),
    "linecache",  # Python 3.13 and later keep the source of a script there
}


@pytest.mark.slow
def test_bundle_has_every_module_of_a_run(tmp_path: Path) -> None:
    file = str(tmp_path / "run.bundle")
    assert make(file)
    script = LIST_OTHERS.format(root=str(ROOT), file=file)
    run = subprocess.run(
        [sys.executable, "-I", "-S", "-c", script], capture_output=True, text=True, check=True
    )
    frozen = {name for name in run.stdout.split() if name in sys.builtin_module_names}
    assert set(run.stdout.split()) - frozen <= BEFORE_THE_BUNDLE


@pytest.mark.slow
def test_bundle_that_cannot_be_written_is_no_error(tmp_path: Path) -> None:
    assert not make(str(tmp_path / "absent" / "run.bundle"))


ANNOTATED = """
from __future__ import annotations
from sys_util.typing import TYPE_CHECKING, Final
from sys_util.facts import fact
if TYPE_CHECKING:
    from nowhere import Nothing
else:
    other = 1
SOME: Final = 3
NO_VALUE: int

@fact
class Facts:
    \"""A docstring.\"""
    value: int

    def double(self, times: int = 2, *rest: int, by: Nothing | None = None, **more: int) -> int:
        try:
            return self.value * times
        finally:
            def inner(a: int, /) -> Nothing: pass
            self.inner.append(inner)
    inner = []

def fail() -> Nothing:
    raise ValueError
"""


def test_bundled_code_has_no_annotations_but_those_of_classes(tmp_path: Path) -> None:
    source = tmp_path / "annotated.py"
    source.write_text(ANNOTATED)
    found: dict[str, Any] = {"__name__": "annotated"}
    exec(bundle_maker._compile(str(source)), found)
    facts = found["Facts"](4)
    assert facts.double() == 8
    functions = (found["fail"], type(facts).double, facts.inner[0])
    assert [function.__annotations__ for function in functions] == [{}, {}, {}]
    assert found["Facts"].__annotations__ == {"value": "int"}
    assert (found["SOME"], found["other"], found["Facts"].__doc__) == (3, 1, None)
    assert "SOME" not in found["__annotations__"]
    with pytest.raises(ValueError, match=r"^$") as raised:
        found["fail"]()
    assert raised.traceback[-1].lineno + 1 == len(ANNOTATED.splitlines())


def test_annotations_that_are_evaluated_stay(tmp_path: Path) -> None:
    source = tmp_path / "annotated.py"
    source.write_text("def double(value: int) -> int: pass\n")
    found: dict[str, Any] = {}
    exec(bundle_maker._compile(str(source)), found)
    assert found["double"].__annotations__ == {"value": int, "return": int}
