# SPDX-License-Identifier: BSD-3-Clause
"""Keep compiled policies in ``$XDG_CACHE_HOME/crosvm-py``; the key is a hash of their text.

A user who can write here decides what a device may do. So the folder and every file must belong to
us, nobody else may write to them, and neither may be a symbolic link. An entry contains its key, a
checksum and a stamp of the libseccomp that compiled it. If anything is wrong with the cache, we
compile the policy instead. A program from the cache is not compared with its policy again: that
was done when it was compiled (verify.py), and would take a hundred times as long as the rest.
"""

from __future__ import annotations

import contextlib
import os
import stat
import sys

from sys_util.typing import TYPE_CHECKING, Final, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterator

try:
    # hashlib loads OpenSSL, which takes 2.5 ms: longer than all the rest if the policy is cached.
    if sys.version_info >= (3, 12):
        from _sha2 import sha256
    else:
        from _sha256 import sha256  # type: ignore[import-not-found] # private to CPython
except ImportError:
    from hashlib import sha256

FORMAT: Final = b"crosvm-py policy 2\n"  # change it whenever the compiler changes

_DIGEST_BYTES: Final = 32
_MAX_ENTRY_BYTES: Final = 64 * 1024  # twice the size of 4096 instructions
_MAX_ENTRIES: Final = 128
_SUFFIX: Final = ".bpf"

_warned = False  # whether this process has said what is wrong with the cache


class LibraryStamp(NamedTuple):
    """Which libseccomp compiled a program. If the file at ``path`` changes, the entry is stale."""

    path: str
    size_bytes: int
    mtime_ns: int

    @classmethod
    def of(cls, path: str) -> LibraryStamp | None:
        """Return the stamp of a library file; ``None`` without one: nothing can be cached then."""
        try:
            status = os.stat(path)
        except (OSError, ValueError):  # ValueError if the path contains a NUL
            return None
        return cls(path, status.st_size, status.st_mtime_ns)

    def encode(self) -> bytes:
        """Return the line for it in an entry of the cache."""
        return os.fsencode(f"{self.size_bytes} {self.mtime_ns} {self.path}\n")


def cache_key(sources: dict[str, bytes], context: str) -> str:
    """Return a hash of all source texts and of ``context``, which also affects the program."""
    digest = sha256(FORMAT + os.fsencode(context) + b"\0")
    for path, text in sources.items():
        digest.update(b"%s\0%d\0" % (os.fsencode(path), len(text)))
        digest.update(text)
    found: str = digest.hexdigest()
    return found


def cache_folder() -> str:
    """Return the path of the cache folder, which need not exist."""
    base = os.environ.get("XDG_CACHE_HOME", "")
    if not os.path.isabs(base):
        base = os.path.join(os.path.expanduser("~"), ".cache")
    return os.path.join(base, "crosvm-py")


def load(key: str) -> bytes | None:
    """Return the cached program; ``None`` if it is absent, stale, damaged or not trustworthy."""
    with _open_folder(create=False) as folder:
        if folder is None:
            return None
        try:
            entry = _read_private(folder, key + _SUFFIX)
        except FileNotFoundError:
            return None
        except OSError as error:
            name = key + _SUFFIX
            warn(f"{name} of the seccomp cache {cache_folder()} is not used: {error.strerror}")
            return None
    return None if entry is None else _decode(key, entry)


def store(key: str, bpf: bytes, library: LibraryStamp | None) -> None:
    """Put a program into the cache; a cache that cannot be written is no error."""
    if library is None:
        return
    body = key.encode() + b"\n" + library.encode() + bpf
    with _open_folder(create=True) as folder:
        if folder is None:
            return
        name = f".{os.getpid()}.{key}.tmp"
        with contextlib.suppress(OSError):
            _write(folder, name, FORMAT + sha256(body).digest() + body)
            os.rename(name, key + _SUFFIX, src_dir_fd=folder, dst_dir_fd=folder)
            _prune(folder)


def _decode(key: str, entry: bytes) -> bytes | None:
    start = len(FORMAT) + _DIGEST_BYTES
    body = entry[start:]
    if not entry.startswith(FORMAT) or sha256(body).digest() != entry[len(FORMAT) : start]:
        return None
    named, _, rest = body.partition(b"\n")
    library, _, bpf = rest.partition(b"\n")
    path = os.fsdecode(library.split(b" ", 2)[-1])
    stamp = LibraryStamp.of(path)
    if named != key.encode() or stamp is None or stamp.encode() != library + b"\n":
        return None
    return bpf


@contextlib.contextmanager
def _open_folder(*, create: bool) -> Iterator[int | None]:
    """Open the cache folder for a ``with`` block; ``None`` if it is absent or not trustworthy."""
    path = cache_folder()
    fd = None
    try:
        if create:
            _create_folder(path)
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        problem = _problem(os.fstat(fd))
    except FileNotFoundError:
        problem = None
    except OSError as error:
        # No warning if we only fail to make it: in a read-only home that is normal.
        problem = None if create else error.strerror
    try:
        if problem:
            warn(f"the seccomp cache {path} is not used: {problem}")
        yield None if problem else fd
    finally:
        if fd is not None:
            os.close(fd)


def _create_folder(path: str) -> None:
    """Create the folder, unless its parent is another user's (as with sudo: root in a home)."""
    parent = os.path.dirname(path)
    with contextlib.suppress(FileExistsError):
        os.mkdir(parent, 0o700)
    if os.stat(parent).st_uid == os.geteuid():
        with contextlib.suppress(FileExistsError):
            os.mkdir(path, 0o700)


def _problem(status: os.stat_result) -> str | None:
    """Say why a file or folder cannot be trusted; ``None`` if it can."""
    if status.st_uid != os.geteuid():
        return f"belongs to uid {status.st_uid}"
    if status.st_mode & 0o022:
        return f"mode {stat.S_IMODE(status.st_mode):04o} lets others write (chmod go-w)"
    return None


def _read_private(folder: int, name: str) -> bytes | None:
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
    fd = os.open(name, flags, dir_fd=folder)
    try:
        status = os.fstat(fd)
        problem = _problem(status) if stat.S_ISREG(status.st_mode) else "is not a regular file"
        if problem:
            warn(f"{name} of the seccomp cache {cache_folder()} is not used: {problem}")
            return None
        return os.read(fd, _MAX_ENTRY_BYTES)
    finally:
        os.close(fd)


def _write(folder: int, name: str, data: bytes) -> None:
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    with contextlib.suppress(FileNotFoundError):
        os.unlink(name, dir_fd=folder)  # from a process with the same pid that was killed
    fd = os.open(name, flags, 0o600, dir_fd=folder)
    try:
        # If not all is written, the checksum will not match, and the entry is written again.
        os.write(fd, data)
    finally:
        os.close(fd)


def _prune(folder: int) -> None:
    """Remove the oldest entries if there are many: every edit of a policy adds a new one."""
    names = [name for name in os.listdir(folder) if name.endswith((_SUFFIX, ".tmp"))]
    if len(names) <= _MAX_ENTRIES:
        return
    names.sort(key=lambda name: os.stat(name, dir_fd=folder, follow_symlinks=False).st_mtime_ns)
    for name in names[: len(names) // 2]:
        os.unlink(name, dir_fd=folder)


def leave_warnings_to_others() -> None:
    """Log no warning of the cache in this process: the one that forked it says the same."""
    global _warned
    _warned = True


def warn(message: str) -> None:
    """Log only the first warning of this process: a run loads several policies, all with the same.

    The log is imported only here, because a start with a good cache does not need it.
    """
    global _warned
    if _warned:
        return
    _warned = True
    from sys_util.log import get_logger

    get_logger(__name__).warning("%s; policies are compiled anew at each start", message)
