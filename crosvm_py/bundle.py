# SPDX-License-Identifier: BSD-3-Clause
"""Import the modules of a run from one file, the bundle, which has their compiled code.

Python looks for a module in the folders of its path and opens a file for each. For the modules of a
run that takes 10 ms. The bundle replaces the search and the opening, and nothing else. Like the
bytecode files of Python it lies in ``__pycache__``, and the first command writes it
(``crosvm_py/bundle_maker.py``), in a virtual environment only: a checkout has none. It is valid for
the interpreter that made it, as long as the folders of third-party packages do not change. A module
in it is used only if its source still has the size and the time of change that it had.

Whoever can write to the bundle decides what we execute. So it must belong to us, to root or to the
owner of the program, and nobody else may write to it. If anything is wrong with it, Python imports
the modules as usual.
"""

from __future__ import annotations

import marshal
import os
import sys
from _frozen_importlib import ModuleSpec
from _frozen_importlib_external import ExtensionFileLoader

TYPE_CHECKING = False  # a type checker takes this name for true, as it does in typing
if TYPE_CHECKING:
    from collections.abc import Sequence
    from types import CodeType, ModuleType
    from typing import Final

FILE: Final = f"{os.path.dirname(__file__)}/__pycache__/run.{sys.implementation.cache_tag}.bundle"

# The file begins with this. No other interpreter can read the rest; the version has its build date.
MAGIC: Final = f"crosvm-py bundle 1\n{sys.version}\n".encode()
LENGTH_BYTES: Final = 4  # of the head that follows, little-endian

_OTHERS_MAY_WRITE: Final = 0o022

# The C library maps this much for itself, and gives it back at once (M_MMAP_THRESHOLD, mallopt(3)).
_SEPARATE_BYTES: Final = 256 * 1024

# Makes a bundle: its arguments are the folder of our packages, the file, and ``sys.path``.
_PROGRAM: Final = """
import sys
base = sys.path[:]
sys.path.insert(0, sys.argv[1])
from crosvm_py.bundle_maker import write_bundle
write_bundle(sys.argv[2], sys.argv[3:], base)
"""


class Head:
    """What the head of a bundle says: a marshalled tuple of these.

    path: ``sys.path`` with the folders of third-party packages.
    watched: files and folders that decide what is found there, and when each was changed.
    modules: by name: source file, when it was changed, its size, whether it is a package, and
        where its code, after its name, begins and ends, counted from the end of the head.
    extensions: modules in C by name: their files.
    code_bytes: the size of everything behind the head.
    """

    def __init__(
        self,
        path: list[str],
        watched: list[tuple[str, int]],
        modules: dict[str, tuple[str, int, int, bool, int, int]],
        extensions: dict[str, str],
        code_bytes: int,
    ) -> None:
        self.path = path
        self.watched = watched
        self.modules = modules
        self.extensions = extensions
        self.code_bytes = code_bytes

    def encode(self) -> bytes:
        """Return what a bundle begins with."""
        head = marshal.dumps(tuple(vars(self).values()))
        return MAGIC + len(head).to_bytes(LENGTH_BYTES, "little") + head

    @classmethod
    def decode(cls, data: bytes) -> Head | None:
        """Return the head of a bundle, or ``None`` if it is damaged."""
        try:
            return cls(*marshal.loads(data))
        except (EOFError, TypeError, ValueError):
            return None


class Bundle:
    """A bundle in memory: an entry of ``sys.meta_path``, and the loader of its modules."""

    def __init__(self, file: str, fd: int, head: Head, begin: int) -> None:
        """Take over ``fd``, the open file, and ``head``. The code begins at ``begin``.

        Modules whose source has changed are left out.
        """
        self.fd = fd
        self._file = file
        self._begin = begin
        # All code goes through this. An object for each would leave as many holes in the heap.
        largest = max((module[5] - module[4] for module in head.modules.values()), default=0)
        self._buffer = bytearray(max(largest, _SEPARATE_BYTES))
        self._modules = {
            name: module for name, module in head.modules.items() if _is_current(*module[:3])
        }
        self._extensions = head.extensions
        self.is_complete = len(self._modules) == len(head.modules)

    def find_spec(
        self, name: str, _path: Sequence[str] | None = None, _target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Return how a module is loaded; ``None`` if it is not in the bundle."""
        module = self._modules.get(name)
        if module is None:
            return self._find_extension(name)
        origin, _, _, is_package, begin, end = module
        code = self._load(name.encode(), begin, end)
        if code is None:
            return None
        spec = ModuleSpec(name, self, origin=origin, is_package=is_package)  # type: ignore[arg-type]  # importlib looks for the methods, not for the base class
        spec.has_location = True
        spec.loader_state = code
        spec.cached = self._file
        if is_package:
            spec.submodule_search_locations = [os.path.dirname(origin)]
        return spec

    def _find_extension(self, name: str) -> ModuleSpec | None:
        origin = self._extensions.get(name)
        if origin is None:
            return None
        spec = ModuleSpec(name, ExtensionFileLoader(name, origin), origin=origin)
        spec.has_location = True
        return spec

    def create_module(self, _spec: ModuleSpec) -> ModuleType | None:
        """Leave it to Python to make the module."""
        return None

    def exec_module(self, module: ModuleType) -> None:
        """Execute the code of a module."""
        spec = module.__spec__
        if spec is not None:
            code, spec.loader_state = spec.loader_state, None
            exec(code, module.__dict__)

    def _load(self, mark: bytes, begin: int, end: int) -> CodeType | None:
        """Return code; ``None`` if another file has our descriptor's number by now."""
        room = memoryview(self._buffer)[: end - begin]
        try:
            length = os.preadv(self.fd, [room], self._begin + begin)
        except OSError:
            return None
        if length < len(room) or room[: len(mark)] != mark:
            return None
        loaded: CodeType = marshal.loads(room[len(mark) :])
        return loaded

    def close(self) -> None:
        """Close the file and free the memory. Imported modules still refer to this object."""
        self._modules = {}
        self._extensions = {}
        self._buffer = bytearray()
        os.close(self.fd)


_used: Bundle | None = None


def start() -> None:
    """Set up the imports of a program that was started with ``-S``.

    If there is no bundle, or sources have changed, make one if we may write here.
    """
    if use(FILE):
        return
    if _used is None:
        import site

        site.main()
    if os.access(os.path.dirname(FILE), os.W_OK):
        make(FILE)
        use(FILE)


def use(file: str) -> bool:
    """Import from the bundle in ``file`` from now on; return whether it is complete.

    If the bundle is valid, ``sys.path`` becomes what it was when the bundle was made.
    """
    global _used
    drop()
    try:
        fd = os.open(file, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError:
        return False
    head, begin = _read_head(fd)
    if head is None:
        os.close(fd)
        return False
    sys.path[:] = head.path
    _used = Bundle(file, fd, head, begin)
    sys.meta_path.insert(0, _used)
    return _used.is_complete


def used_fds() -> frozenset[int]:
    """Return the descriptor of the bundle that is used, if any; only ``drop`` may close it."""
    return frozenset() if _used is None else frozenset({_used.fd})


def drop() -> None:
    """Import as usual from now on, and free the memory of the bundle."""
    global _used
    if _used is not None:
        sys.meta_path.remove(_used)
        _used.close()
        _used = None


def make(file: str) -> bool:
    """Write a bundle for this interpreter and this ``sys.path``; return whether that was done.

    Errors are not reported: the modules can be imported without a bundle.
    """
    root = os.path.dirname(os.path.dirname(__file__))
    # Without the columns of instructions: tracebacks show the lines, and no markers below them.
    options = ("-I", "-S", "-X", "no_debug_ranges")
    command = [sys.executable, *options, "-c", _PROGRAM, root, file, *sys.path]
    silence = [(os.POSIX_SPAWN_OPEN, fd, os.devnull, os.O_RDWR, 0) for fd in range(3)]
    try:
        pid = os.posix_spawn(sys.executable, command, {}, file_actions=silence)
    except OSError:
        return False
    return os.waitpid(pid, 0)[1] == 0


def _read_head(fd: int) -> tuple[Head | None, int]:
    """Return the head of a bundle and where its code begins; no head if it must not be used."""
    status = os.fstat(fd)
    owners = (0, os.geteuid(), os.stat(__file__).st_uid)
    if status.st_uid not in owners or status.st_mode & _OTHERS_MAY_WRITE:
        return None, 0
    begin = len(MAGIC) + LENGTH_BYTES
    start = os.pread(fd, begin, 0)
    if start[: len(MAGIC)] != MAGIC:
        return None, 0
    length = int.from_bytes(start[len(MAGIC) :], "little")
    head = Head.decode(os.pread(fd, length, begin))
    if head is None or begin + length + head.code_bytes != status.st_size:
        return None, 0
    return head if _is_path_current(head.watched) else None, begin + length


def _is_current(origin: str, mtime_ns: int, size_bytes: int) -> bool:
    try:
        status = os.stat(origin)
    except OSError:
        return False
    return status.st_mtime_ns == mtime_ns and status.st_size == size_bytes


def _is_path_current(watched: list[tuple[str, int]]) -> bool:
    try:
        return all(os.stat(path).st_mtime_ns == mtime_ns for path, mtime_ns in watched)
    except OSError:
        return False
