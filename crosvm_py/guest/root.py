# SPDX-License-Identifier: BSD-3-Clause
"""Make root images: squashfs from a tar stream, which needs no privileges and keeps owners.

``minimal`` contains only busybox; ``debian`` is made by mmdebstrap.
"""

from __future__ import annotations

import contextlib
import os
import re
import subprocess
import tarfile

from crosvm_py.guest.apt import ARCHITECTURE
from crosvm_py.guest.tools import failure, plain_environment
from sys_util.errors import HostError
from sys_util.typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import IO

    from crosvm_py.guest.apt import Apt, Source
    from crosvm_py.guest.tools import Progress

_MKSQUASHFS: Final = (
    *("-tar", "-noappend", "-no-progress", "-quiet", "-comp", "zstd", "-no-xattrs"),
    # For the root directory itself, mksquashfs does not use the archive's entry.
    *("-root-mode", "0755", "-root-uid", "0", "-root-gid", "0"),
)
# Lines in the output of mmdebstrap that begin with these words are its steps.
_STEPS: Final = frozenset(
    {"cleaning", "creating", "downloading", "extracting", "installing", "running"}
)
_FOLDERS: Final = (
    *("bin", "dev", "etc", "mnt", "proc", "root", "run", "sbin", "sys", "tmp", "usr", "var"),
)
_FILES: Final = {
    "etc/passwd": "root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/false\n",
    "etc/group": "root:x:0:\nnogroup:x:65534:\n",
    "etc/hostname": "crosvm\n",
    "etc/hosts": "127.0.0.1 localhost\n::1 localhost\n",
}
# No links for these: they make sense only together with a package manager or an init of their own,
# and would hide the real commands.
_NOT_LINKED: Final = frozenset(
    {"busybox", "dpkg", "dpkg-deb", "init", "linuxrc", "rpm", "rpm2cpio"}
)
_APPLETS_START: Final = b"[\0[[\0"
_APPLETS_END: Final = b"\0\0"
_APPLET: Final = re.compile(r"[a-z0-9_.+-]{1,30}")


def applets(busybox: bytes) -> list[str]:
    """Return the names of the commands in a busybox, read from its table without running it."""
    start = busybox.find(_APPLETS_START)
    end = busybox.find(_APPLETS_END, start + 1)
    if start < 0 or end < 0:
        raise HostError("guest make:", "busybox-static: no table of commands in it")
    names = busybox[start:end].decode("ascii", "replace").split("\0")
    return [name for name in names if _APPLET.fullmatch(name) and name not in _NOT_LINKED]


def minimal_root(target: str, busybox: bytes) -> None:
    """Make the root image of ``minimal`` at the path ``target``.

    Raises:
        HostError: mksquashfs failed.
    """
    with _mksquashfs(target) as packer:
        stream = _stdin(packer)
        # If mksquashfs ends early, _finish reports its error.
        with contextlib.suppress(BrokenPipeError):
            _write_minimal(stream, busybox)
        with contextlib.suppress(BrokenPipeError):
            stream.close()
        _finish(packer)


def _write_minimal(stream: IO[bytes], busybox: bytes) -> None:
    with tarfile.open(fileobj=stream, mode="w|", format=tarfile.PAX_FORMAT) as archive:
        for folder in _FOLDERS:
            _add(archive, folder, tarfile.DIRTYPE, 0o1777 if folder == "tmp" else 0o755)
        _add(archive, "bin/busybox", tarfile.REGTYPE, 0o755, busybox)
        for name in applets(busybox):
            _add(archive, f"bin/{name}", tarfile.SYMTYPE, 0o777, link="busybox")
        for name, text in _FILES.items():
            _add(archive, name, tarfile.REGTYPE, 0o644, text.encode())


def debian_root(
    target: str, source: Source, packages: Sequence[str], apt: Apt, progress: Progress
) -> None:
    """Make a root image with a minimal Debian and ``packages`` at the path ``target``.

    Raises:
        HostError: mmdebstrap or mksquashfs failed.
    """
    cache = os.path.join(apt.archives, "debian")
    os.makedirs(cache, exist_ok=True)
    argv = [
        *("mmdebstrap", f"--mode={'unshare' if os.geteuid() else 'root'}", "--format=tar"),
        *("--variant=minbase", f"--architectures={ARCHITECTURE}", "--skip=output/dev"),
        *(("--include=" + ",".join(packages),) if packages else ()),
        # Use our cache for packages, in the way that mmdebstrap's manual page describes.
        *("--skip=download/empty", "--skip=essential/unlink"),
        '--setup-hook=mkdir -p "$1"/var/cache/apt/archives/',
        f"--setup-hook=sync-in {_quoted(cache)} /var/cache/apt/archives/",
        f"--customize-hook=sync-out /var/cache/apt/archives {_quoted(cache)}",
        # No password: only the owner of the guest can reach its console.
        '--customize-hook=chroot "$1" passwd --quiet --delete root',
        '--customize-hook=echo crosvm >"$1"/etc/hostname',
        *(source.suite, "-", apt.sources),
    ]
    with (
        _mksquashfs(target) as packer,
        subprocess.Popen(
            argv,
            env=plain_environment(),
            stdin=subprocess.DEVNULL,
            stdout=_stdin(packer),
            stderr=subprocess.PIPE,
        ) as maker,
    ):
        _stdin(packer).close()
        said = _relay(maker, progress)
        if maker.wait():
            if packer.poll():  # mksquashfs failed first, so mmdebstrap could not write to it
                _finish(packer)
            packer.kill()
            raise failure(f"Debian {source.suite}", argv[0], maker.returncode, said)
        _finish(packer)


def _quoted(path: str) -> str:
    return "'" + path.replace("'", "'\\''") + "'"


def _relay(maker: subprocess.Popen[bytes], progress: Progress) -> bytes:
    """Report the steps of mmdebstrap, and return the last lines of its output."""
    lines: list[bytes] = []
    for line in maker.stderr or ():
        lines = [*lines[-20:], line]
        told = line[3:].decode(errors="replace").strip()
        if line.startswith(b"I: ") and told.endswith("...") and told.split()[0] in _STEPS:
            progress.say(told)
    return b"".join(lines)


def _mksquashfs(target: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        ["mksquashfs", "-", target, *_MKSQUASHFS],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )


def _stdin(process: subprocess.Popen[bytes]) -> IO[bytes]:
    if process.stdin is None:
        raise ValueError("the process has no pipe")
    return process.stdin


def _finish(packer: subprocess.Popen[bytes]) -> None:
    said = packer.stdout.read() if packer.stdout else b""
    if packer.wait():
        raise failure("root image", "mksquashfs", packer.returncode, said)


def _add(
    archive: tarfile.TarFile, name: str, kind: bytes, mode: int, data: bytes = b"", link: str = ""
) -> None:
    import io

    entry = tarfile.TarInfo(name)
    entry.type = kind
    entry.mode = mode
    entry.size = len(data)
    entry.linkname = link
    archive.addfile(entry, io.BytesIO(data))
