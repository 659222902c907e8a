# SPDX-License-Identifier: BSD-3-Clause
"""A guest's folder, which ``crosvm run DIR`` starts. Its content is not trusted.

``crosvm_py/file_parser/guest.py`` has it parsed by a process of its own.

``guest.conf`` in it has lines ``KEY=VALUE``; empty lines and those that start with ``#`` are
comments. Keys, each at most once:

===========  ====================================================================
``kernel``   the kernel's file; this key is required
``initrd``   the initial RAM disk
``root``     the image of a root disk that the guest cannot write
``rwroot``   the image of a root disk that it can write; not together with ``root``
``params``   words for the kernel's command line
===========  ====================================================================

Files are names of regular files in the folder itself, without a path; symbolic links are refused.
When the files are opened later, links are not followed either, because the owner of the folder may
change it after this check.
"""

from __future__ import annotations

import os
import stat

from sys_util.errors import ConfigError
from sys_util.facts import fact, replace
from sys_util.typing import Final

NAME: Final = "guest.conf"
# Enough for five lines; the kernel takes at most 2047 bytes of parameters.
MAX_BYTES: Final = 4096
MAX_PARAMS_CHARS: Final = 1024
MAX_NAME_CHARS: Final = 100

_FILE_KEYS: Final = ("kernel", "initrd", "root", "rwroot")
_KEYS: Final = (*_FILE_KEYS, "params")
_NAME_CHARS: Final = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._+-")


@fact
class GuestDescription:
    """The content of ``guest.conf``: file names, and words for the kernel's command line."""

    kernel: str
    initrd: str | None = None
    root: str | None = None
    rwroot: str | None = None
    params: str = ""


def read_bytes(folder: str) -> tuple[str, bytes]:
    """Return the path and the bytes of a folder's description, of which nothing is checked.

    Raises:
        ConfigError: the folder has none, or it is too long.
    """
    path = os.path.join(folder, NAME)
    return path, _read(path)


def located(folder: str, found: GuestDescription) -> GuestDescription:
    """Return the guest of a folder with the paths of its files, after the names were checked.

    Raises:
        ConfigError: a value is wrong, or a file is not a regular one of this folder.
    """
    path = os.path.join(folder, NAME)
    changes = {}
    for key in _KEYS:
        name = getattr(found, key)
        if name is None:
            continue
        _check_value(path, key, name)
        if key in _FILE_KEYS:
            changes[key] = _regular_file(path, key, folder, name)
    return replace(found, **changes)


def parse(path: str, data: bytes) -> GuestDescription:
    """Parse the bytes of a description; ``path`` is for messages.

    Raises:
        ConfigError: a line, a key or a value is wrong.
    """
    values: dict[str, str] = {}
    for number, line in enumerate(_lines(path, data), 1):
        if not line or line.startswith("#"):
            continue
        key, equals, value = line.partition("=")
        where = f"{path}:{number}"
        if not equals:
            raise ConfigError(f"{where}: not a line KEY=VALUE")
        if key not in _KEYS:
            raise ConfigError(f"{where}: unknown key {key[:40]!r}; known are {', '.join(_KEYS)}")
        if key in values:
            raise ConfigError(f"{where}: {key} is there twice")
        _check_value(where, key, value)
        values[key] = value
    if "kernel" not in values:
        raise ConfigError(f"{path}: no line kernel=FILE")
    if "root" in values and "rwroot" in values:
        raise ConfigError(f"{path}: root and rwroot exclude each other")
    return GuestDescription(
        kernel=values["kernel"],
        initrd=values.get("initrd"),
        root=values.get("root"),
        rwroot=values.get("rwroot"),
        params=values.get("params", ""),
    )


def write_description(guest: GuestDescription) -> bytes:
    """Return the bytes of ``guest.conf`` for a guest whose files are names without a path."""
    lines = [f"{key}={getattr(guest, key)}\n" for key in _KEYS if getattr(guest, key)]
    return "".join(lines).encode("ascii")


def _read(path: str) -> bytes:
    # Without O_NONBLOCK we would hang if this is a FIFO, before we can refuse it.
    flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY
    try:
        fd = os.open(path, flags)
    except FileNotFoundError:
        raise ConfigError(
            f"{os.path.dirname(path)}: a folder without {NAME} is no guest "
            "(crosvm guest make makes one)"
        ) from None
    except OSError as error:
        raise ConfigError(path) from error
    try:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            raise ConfigError(f"{path}: not a regular file")
        data = os.read(fd, MAX_BYTES + 1)
    except OSError as error:
        raise ConfigError(path) from error
    finally:
        os.close(fd)
    if len(data) > MAX_BYTES:
        raise ConfigError(f"{path}: longer than {MAX_BYTES} bytes")
    return data


def _lines(path: str, data: bytes) -> list[str]:
    try:
        text = data.decode("ascii")
    except UnicodeDecodeError:
        raise ConfigError(f"{path}: not plain ASCII text") from None
    lines = text.split("\n")
    if not all(line.isprintable() for line in lines):
        raise ConfigError(f"{path}: control characters")
    return lines


def _check_value(where: str, key: str, value: str) -> None:
    if key == "params":
        if len(value) > MAX_PARAMS_CHARS:
            raise ConfigError(f"{where}: params are longer than {MAX_PARAMS_CHARS} characters")
        return
    if not value:
        raise ConfigError(f"{where}: {key} is empty")
    if len(value) > MAX_NAME_CHARS:
        raise ConfigError(f"{where}: {key} is longer than {MAX_NAME_CHARS} characters")
    if value.startswith(".") or not _NAME_CHARS.issuperset(value):
        raise ConfigError(
            f"{where}: {key} {value!r} is not the name of a file in this folder: letters, digits "
            "and ._+- only, no dot first"
        )


def _regular_file(path: str, key: str, folder: str, name: str) -> str:
    found = os.path.join(folder, name)
    try:
        mode = os.lstat(found).st_mode
    except OSError as error:
        raise ConfigError(f"{path}: {key} {name}") from error
    if stat.S_ISLNK(mode):
        raise ConfigError(f"{path}: {key} {name} is a symbolic link, which is not followed")
    if not stat.S_ISREG(mode):
        raise ConfigError(f"{path}: {key} {name} is not a regular file")
    return found
