# SPDX-License-Identifier: BSD-3-Clause
"""Our light forms of ``socket``, ``signal`` and ``msgpack`` say the same as Python's modules."""

from __future__ import annotations

import ast
import os
import signal as pythons_signal
import socket as pythons_socket
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from sys_util import signal, socket
from sys_util.modules import load_module

if TYPE_CHECKING:
    from types import ModuleType

ROOT = Path(__file__).parents[2]


def declared(module: ModuleType) -> set[str]:
    """Return the names that a type checker sees."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(Path(str(module.__file__)).read_text())):
        if isinstance(node, ast.ImportFrom) and node.module == module.__name__.rpartition(".")[2]:
            names |= {alias.name for alias in node.names}
    return names


@pytest.mark.parametrize(
    ("ours", "pythons"),
    [(socket, pythons_socket), (signal, pythons_signal)],
    ids=lambda m: m.__name__,
)
def test_declared_names_are_there_with_the_same_values(
    ours: ModuleType, pythons: ModuleType
) -> None:
    names = declared(ours)
    assert len(names) > 20
    for name in names:
        mine, theirs = getattr(ours, name), getattr(pythons, name)
        assert callable(mine) if callable(theirs) else mine == theirs


def test_socket_has_the_methods_that_a_type_checker_sees() -> None:
    files = {"makefile", "sendfile"}  # of file objects: nothing here uses them
    public = {name for name in dir(pythons_socket.socket) if not name.startswith("_")}
    assert public - files <= set(dir(socket.socket))


def test_duplicate_is_a_socket_of_its_own() -> None:
    one, other = socket.socketpair()
    with one, other, other.dup() as again:
        other.close()
        assert not again.get_inheritable()
        one.send(b"word")
        assert again.recv(4) == b"word"


def test_socket_is_closed_by_with() -> None:
    one, other = socket.socketpair()
    with one, other:
        one.send(b"word")
        assert other.recv(4) == b"word"
    assert (one.fileno(), other.fileno()) == (-1, -1)


def test_accepted_socket_is_of_our_class_and_closed_on_exec(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.bind(str(tmp_path / "sock"))
        listener.listen()
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as client:
            client.connect(str(tmp_path / "sock"))
            accepted, _ = listener.accept()
    with accepted:
        assert isinstance(accepted, socket.socket)
        assert (accepted.family, accepted.type) == (socket.AF_UNIX, socket.SOCK_STREAM)
        assert not os.get_inheritable(accepted.fileno())


def test_signals_have_pythons_names() -> None:
    assert all(signal.signal_name(each) == each.name for each in pythons_signal.Signals)
    assert signal.signal_name(40) == "signal 40"


def test_datetime_is_the_whole_module_after_msgpack_was_imported() -> None:
    script = f"import sys; sys.path[:] = {[str(ROOT), *sys.path]!r}\n"
    script += "from sys_util import msgpack\nassert 'datetime' not in sys.modules\n"
    script += "import datetime; print(datetime.__file__, msgpack.unpackb(msgpack.packb([1])))"
    run = subprocess.run(
        [sys.executable, "-I", "-S", "-c", script], capture_output=True, text=True, check=True
    )
    assert "datetime.py [1]" in run.stdout


def test_module_is_loaded_by_its_name() -> None:
    assert load_module("sys_util.socket") is socket
