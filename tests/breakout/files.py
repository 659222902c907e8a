# SPDX-License-Identifier: BSD-3-Clause
"""Attempts on the host's files: to open, to see, to list, to make or to change one."""

from __future__ import annotations

import errno
import os
import struct
from typing import TYPE_CHECKING, Final

from tests.breakout.attempt import Attempt, any_of, every, just, on_each, opens, refuse
from tests.breakout.hands import call

if TYPE_CHECKING:
    from tests.breakout.attempt import Cell

GROUP: Final = "files"

AT_FDCWD: Final = -100
AT_EMPTY_PATH: Final = 0x1000
AT_SYMLINK_FOLLOW: Final = 0x400
PASSWD: Final = b"/etc/passwd\0"
ROOT: Final = b"/\0"
NEW: Final = b"/broken-out\0"
MODE: Final = 0o600
_DIRECTORY: Final = os.O_RDONLY | os.O_DIRECTORY
_STAT_BYTES: Final = 256


def open_at(path: bytes, flags: int = os.O_RDONLY, *, at: int = AT_FDCWD) -> None:
    call("close", call("openat", at, path, flags, MODE))


def openat2(_cell: Cell) -> None:
    how = struct.pack("QQQ", os.O_RDONLY, 0, 0)
    call("close", call("openat2", AT_FDCWD, PASSWD, how, len(how)))


def open_by_handle(_cell: Cell) -> None:
    """The handle of a root directory: inode 2 of ext4, 128 of XFS (the shocker exploit)."""
    for inode in (2, 128):
        handle = struct.pack("IiII", 8, 1, inode, 0)
        call("open_by_handle_at", 0, handle, os.O_RDONLY)


def handle_of_root(_cell: Cell) -> None:
    handle = bytearray(struct.pack("Ii", 128, 0) + bytes(128))
    call("name_to_handle_at", AT_FDCWD, PASSWD, handle, bytearray(4), 0)


def list_directory(fd: int) -> None:
    entries = bytearray(4096)
    size = call("getdents64", fd, entries, len(entries))
    names = {entry for entry in bytes(entries[:size]).replace(b"\0", b" ").split() if entry}
    if not any(len(name) > 2 and name.isalnum() for name in names):
        raise refuse("getdents64", errno.ENOENT)


def list_path(path: bytes) -> None:
    fd = call("openat", AT_FDCWD, path, _DIRECTORY)
    try:
        list_directory(fd)
    finally:
        call("close", fd)


def leave_by(fd: int) -> None:
    """Look for a way out through a descriptor: what is above it, and what it is a link to."""
    link = f"/proc/self/fd/{fd}\0".encode()
    any_of(
        [
            lambda: open_at(b"..\0", _DIRECTORY, at=fd),
            lambda: open_at(b"etc/passwd\0", at=fd),
            lambda: open_at(link, os.O_RDWR),
            lambda: list_directory(fd),
        ]
    )


def stat_by(fd: int) -> None:
    call("newfstatat", fd, b"..\0", bytearray(_STAT_BYTES), 0)


def watch(_cell: Cell) -> None:
    fd = call("inotify_init1", 0)
    call("inotify_add_watch", fd, b"/etc\0", 0xFFF)
    call("close", fd)


def _open(path: str, *, proof: bool = True) -> Attempt:
    raw = path.encode() + b"\0"
    return Attempt(GROUP, f"open {path}", lambda _cell: open_at(raw), jail=True, proof=proof)


ATTEMPTS: Final = (
    _open("/etc/passwd"),
    _open("../../../../../../etc/passwd"),
    _open("/proc/self/mem"),
    _open("/proc/1/root/etc/passwd", proof=False),
    _open("/proc/self/fd/0"),
    _open("/proc/sys/kernel/hostname"),
    _open("/dev/zero"),
    _open("/dev/ptmx"),
    _open("/dev/kvm", proof=False),
    _open("/sys/kernel"),
    Attempt(GROUP, "open by the old call", opens("open", PASSWD, 0, 0), jail=True, proof=True),
    Attempt(GROUP, "open by openat2", openat2, jail=True, proof=True),
    Attempt(GROUP, "open by file handle", open_by_handle, jail=True),
    Attempt(GROUP, "take a file handle", handle_of_root, jail=True, proof=True),
    Attempt(GROUP, "open through each descriptor", on_each(every, leave_by), jail=True),
    Attempt(GROUP, "stat", just("stat", PASSWD, bytearray(_STAT_BYTES)), jail=True, proof=True),
    Attempt(
        GROUP,
        "stat by newfstatat",
        just("newfstatat", AT_FDCWD, PASSWD, bytearray(_STAT_BYTES), 0),
        jail=True,
        proof=True,
    ),
    Attempt(
        GROUP,
        "stat by statx",
        just("statx", AT_FDCWD, PASSWD, 0, 0x7FF, bytearray(_STAT_BYTES)),
        jail=True,
        proof=True,
    ),
    Attempt(GROUP, "stat through each descriptor", on_each(every, stat_by), jail=True),
    Attempt(
        GROUP,
        "size of each descriptor",
        on_each(every, lambda fd: call("fstat", fd, bytearray(_STAT_BYTES))),
    ),
    Attempt(GROUP, "test access", just("access", PASSWD, 0), jail=True, proof=True),
    Attempt(
        GROUP,
        "test access by faccessat2",
        just("faccessat2", AT_FDCWD, PASSWD, 0, 0),
        jail=True,
        proof=True,
    ),
    Attempt(
        GROUP,
        "read a link",
        just("readlink", b"/proc/self/exe\0", bytearray(256), 256),
        jail=True,
        proof=True,
    ),
    Attempt(GROUP, "list the root", lambda _cell: list_path(ROOT), jail=True, proof=True),
    Attempt(GROUP, "list the directory above", lambda _cell: list_path(b"..\0"), jail=True),
    Attempt(GROUP, "list /proc", lambda _cell: list_path(b"/proc\0"), jail=True, proof=True),
    Attempt(
        GROUP,
        "make a file",
        lambda _cell: open_at(NEW, os.O_CREAT | os.O_WRONLY),
        jail=True,
    ),
    Attempt(
        GROUP,
        "make an unnamed file",
        lambda _cell: open_at(ROOT, 0o20200000 | os.O_WRONLY),
        jail=True,
    ),
    Attempt(GROUP, "make a directory", just("mkdir", NEW, MODE), jail=True),
    Attempt(GROUP, "make a device node", just("mknod", NEW, 0o020600, 0x103), jail=True),
    Attempt(GROUP, "make a symbolic link", just("symlink", PASSWD, NEW), jail=True),
    Attempt(
        GROUP,
        "link a descriptor into the root",
        on_each(every, lambda fd: call("linkat", fd, b"\0", AT_FDCWD, NEW, AT_EMPTY_PATH)),
        jail=True,
    ),
    Attempt(GROUP, "remove a file", just("unlink", b"/v_52\0"), jail=True),
    Attempt(GROUP, "rename a file", just("rename", b"/v_52\0", NEW), jail=True),
    Attempt(GROUP, "change a mode", just("chmod", ROOT, 0o777), jail=True),
    Attempt(
        GROUP, "change a descriptor's mode", on_each(every, lambda fd: call("fchmod", fd, 0o666))
    ),
    Attempt(GROUP, "change an owner", just("chown", ROOT, 0, 0), jail=True),
    Attempt(GROUP, "truncate a file", just("truncate", b"/v_52\0", 0), jail=True),
    Attempt(
        GROUP,
        "read an attribute",
        just("listxattr", PASSWD, bytearray(64), 64),
        jail=True,
        proof=True,
    ),
    Attempt(GROUP, "set an attribute", just("setxattr", ROOT, b"user.x\0", b"x", 1, 0), jail=True),
    Attempt(GROUP, "watch a directory", watch, jail=True, proof=True),
    Attempt(
        GROUP,
        "duplicate a descriptor",
        on_each(every, lambda fd: call("close", call("fcntl", fd, 0, 0))),
        proof=True,
    ),
    Attempt(
        GROUP,
        "lock a file",
        on_each(every, lambda fd: call("flock", fd, 6)),
    ),
    Attempt(
        GROUP, "copy between descriptors", on_each(every, lambda fd: call("sendfile", fd, fd, 0, 1))
    ),
)
