# SPDX-License-Identifier: BSD-3-Clause
"""Make the bundle (``crosvm_py/bundle.py``), in an interpreter of its own.

That interpreter imports what any process of a run may import. The process that asks for the bundle
would otherwise be left with all of it.
"""

from __future__ import annotations

import marshal
import os
import sys

from crosvm_py.bundle import Head

TYPE_CHECKING = False  # a type checker takes this name for true, as it does in typing
if TYPE_CHECKING:
    import ast
    from collections.abc import Iterable, Sequence
    from types import CodeType
    from typing import Final

# Where the processes of a run begin, beside its command line and the kinds of device.
BEGINNINGS: Final = (
    *("crosvm_py.__main__", "crosvm_py.log", "crosvm_py.leaving", "crosvm_py.run"),
    *("crosvm_py.vmm.preparation", "crosvm_py.vmm.vm", "crosvm_py.vmm.warden_proxy"),
    *("crosvm_py.warden.warden", "crosvm_py.warden.mould", "crosvm_py.file_parser.process"),
    "kernel_loader.parse",
    *("crosvm_py.control.socket_server", "crosvm_py.console.terminal"),
)
# In such a source no annotation is evaluated.
_UNEVALUATED: Final = b"from __future__ import annotations"
_MACHINE: Final = "crosvm_py.machine.{}.machine"

_ROOT: Final = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))


def write_bundle(file: str, path: Sequence[str], base: Sequence[str]) -> None:
    """Import everything that belongs into a bundle, and write it.

    Args:
        file: is replaced in one step.
        path: ``sys.path`` of the program.
        base: the part of it that every Python of this version has.
    """
    sys.path[:] = path if _ROOT in path else [*path, _ROOT]
    import_all()
    content = _encode(list(path), [entry for entry in path if entry not in base])
    temporary = f"{file}.{os.getpid()}"
    fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o644)
    try:
        with open(fd, "wb") as out:
            out.write(content)
        os.rename(temporary, file)
    except OSError:
        os.unlink(temporary)
        raise


def import_all() -> None:
    """Import every module that some process of a run imports."""
    from crosvm_py.cli.dispatch import COMMANDS
    from crosvm_py.cli.grammar.command import load_command
    from crosvm_py.kinds.table import DEVICE_KINDS
    from crosvm_py.machine.arch import host_arch
    from crosvm_py.operations.dispatch import load_operations
    from seccomp import syscall_name
    from seccomp.syscalls import machine_arch
    from sys_util.modules import load_module

    load_command(COMMANDS["run"])
    for name in (*BEGINNINGS, _MACHINE.format(machine_arch())):
        load_module(name)
    host_arch()
    load_operations()
    syscall_name(0)
    for kind in DEVICE_KINDS.values():
        kind.preload()


def _encode(path: list[str], added: Iterable[str]) -> bytes:
    """Return a bundle with every module that is imported now and has a source file."""
    from importlib.machinery import ExtensionFileLoader, SourceFileLoader

    modules = {}
    extensions = {}
    codes = []
    end = 0
    for name, module in sorted(sys.modules.items()):
        spec = module.__spec__
        if spec is None or spec.origin is None or name == __name__:
            continue
        if isinstance(spec.loader, ExtensionFileLoader):
            extensions[name] = spec.origin
        elif isinstance(spec.loader, SourceFileLoader):
            status = os.stat(spec.origin)  # before the source is read
            codes.append(name.encode() + marshal.dumps(_compile(spec.origin)))
            begin, end = end, end + len(codes[-1])
            is_package = spec.submodule_search_locations is not None
            stamp = (spec.origin, status.st_mtime_ns, status.st_size)
            modules[name] = (*stamp, is_package, begin, end)
    head = Head(path, _watch(added), modules, extensions, end)
    return b"".join([head.encode(), *codes])


def _compile(origin: str) -> CodeType:
    """Compile a source file without the parts that no run reads, because they would take memory.

    Docstrings are left out. If the module evaluates no annotations, those of functions and of the
    module's variables are left out, and the imports that only annotations need. Annotations of
    classes stay, because ``sys_util/facts.py`` reads them.
    """
    import ast  # not before the modules are listed

    with open(origin, "rb") as source:
        text = source.read()
    tree = ast.parse(text, origin)
    if _UNEVALUATED in text:
        _strip(tree)
        tree.body = [_without_annotation(node) for node in tree.body]
    return compile(tree, origin, "exec", dont_inherit=True, optimize=2)


def _strip(node: ast.AST) -> None:
    """Remove the annotations of all functions in a statement, and imports for a type checker."""
    import ast

    match node:
        case ast.FunctionDef(args=arguments) | ast.AsyncFunctionDef(args=arguments):
            node.returns = None
            positional = (*arguments.posonlyargs, *arguments.args)
            for each in (*positional, *arguments.kwonlyargs, arguments.vararg, arguments.kwarg):
                if each is not None:
                    each.annotation = None
        case ast.If(test=ast.Name("TYPE_CHECKING")):
            node.body = [ast.copy_location(ast.Pass(), node)]
    for field in ("body", "orelse", "finalbody", "handlers", "cases"):
        for inner in getattr(node, field, ()):
            _strip(inner)


def _without_annotation(node: ast.stmt) -> ast.stmt:
    import ast

    match node:
        case ast.AnnAssign(target=ast.Name() as name, value=ast.expr() as value):
            return ast.copy_location(ast.Assign([name], value), node)
        case _:
            return node


def _watch(added: Iterable[str]) -> list[tuple[str, int]]:
    """Return what decides where third-party packages are found, and when each was changed."""
    settings = f"{os.path.dirname(os.path.dirname(sys.executable))}/pyvenv.cfg"
    watched = [settings, *added]
    return [(each, os.stat(each).st_mtime_ns) for each in watched if os.path.exists(each)]
