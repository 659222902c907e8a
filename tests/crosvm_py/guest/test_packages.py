# SPDX-License-Identifier: BSD-3-Clause
"""Reading files out of packages, and making initrd and root images of them."""

from __future__ import annotations

import io
import subprocess
import tarfile
from pathlib import Path

import pytest

from crosvm_py.guest import deb, modules
from crosvm_py.guest.initrd import Archive, make_initrd
from crosvm_py.guest.root import applets
from sys_util.errors import HostError


def tar(*entries: tuple[str, bytes, bytes]) -> bytes:
    """Return an archive of (name, type, content or target of a link)."""
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as archive:
        for name, kind, data in entries:
            entry = tarfile.TarInfo(name)
            entry.type = kind
            if kind == tarfile.REGTYPE:
                entry.size = len(data)
            else:
                entry.linkname = data.decode()
            archive.addfile(entry, io.BytesIO(data))
    return stream.getvalue()


def package(folder: Path, name: str, data: bytes) -> str:
    """Make a Debian package whose files are this archive."""
    (folder / "debian-binary").write_text("2.0\n")
    with tarfile.open(folder / "control.tar", "w") as archive:
        archive.addfile(tarfile.TarInfo("./control"))
    (folder / "data.tar").write_bytes(data)
    path = folder / name
    words = ["ar", "rc", name, "debian-binary", "control.tar", "data.tar"]
    subprocess.run(words, cwd=folder, check=True)
    return str(path)


def test_only_regular_files_that_are_wanted_are_read(tmp_path: Path) -> None:
    data = tar(
        ("./boot/vmlinuz-1", tarfile.REGTYPE, b"kernel"),
        ("boot/vmlinuz-2", tarfile.SYMTYPE, b"/etc/passwd"),
        ("boot/vmlinuz-3", tarfile.LNKTYPE, b"boot/vmlinuz-1"),
        ("boot/vmlinuz-4", tarfile.FIFOTYPE, b""),
        ("./../../boot/vmlinuz-5", tarfile.REGTYPE, b"outside"),
        ("./etc/other", tarfile.REGTYPE, b"other"),
    )
    found = deb.read_files(
        package(tmp_path, "p.deb", data), lambda name: name.startswith("boot/vmlinuz-")
    )
    assert list(found) == [("boot/vmlinuz-1", b"kernel")]


@pytest.mark.parametrize("kept", [0, 700, 1500])
def test_package_that_is_cut_off_is_named(tmp_path: Path, kept: int) -> None:
    path = package(tmp_path, "p.deb", tar(("./a", tarfile.REGTYPE, b"a" * 5000)))
    Path(path).write_bytes(Path(path).read_bytes()[:kept])
    with pytest.raises(HostError, match=r"guest make: unpacking: .*p\.deb: status"):
        list(deb.read_files(path, lambda name: True))


def test_large_file_of_a_package_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(deb, "MAX_FILE_BYTES", 10)
    path = package(tmp_path, "p.deb", tar(("./a", tarfile.REGTYPE, b"a" * 11)))
    with pytest.raises(HostError, match="a has 11 bytes"):
        list(deb.read_files(path, lambda name: True))


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("lib/modules/6.1/kernel/drivers/net/virtio_net.ko", "virtio_net"),
        ("usr/lib/modules/6.12/kernel/drivers/char/virtio-rng.ko.xz", "virtio_rng"),
        ("lib/modules/6.1/modules.builtin", None),
        ("lib/modules/6.1/kernel/../../../a.ko.gz", None),
        ("etc/modules/6.1/kernel/a.ko", None),
    ],
)
def test_name_of_a_module(path: str, name: str | None) -> None:
    assert modules.module_name(path) == name


def module(*needed: str) -> bytes:
    return b"\x7fELF\0license=GPL\0depends=" + ",".join(needed).encode() + b"\0name=x\0"


MODULES = {
    "virtio": module("virtio_ring"),
    "virtio_ring": module(),
    "virtio_rng": module("virtio"),
    "virtio_pci": module("virtio", "virtio-ring"),
}


def test_modules_come_after_what_they_need() -> None:
    order = modules.in_order(["virtio_pci", "virtio_rng", "built_in"], MODULES)
    assert order == ["virtio_ring", "virtio", "virtio_pci", "virtio_rng"]


@pytest.mark.parametrize(
    ("found", "reason"),
    [
        pytest.param({"a": module("b")}, "a needs b, not there", id="missing"),
        pytest.param({"a": module("b"), "b": module("a")}, "b needs a, not there", id="circle"),
    ],
)
def test_modules_without_what_they_need_are_refused(found: dict[str, bytes], reason: str) -> None:
    with pytest.raises(HostError, match=reason):
        modules.in_order(["a"], found)


def test_archive_entries_are_aligned_and_closed() -> None:
    archive = Archive()
    archive.add("dev/console", 0o020600, rdev=(5, 1))
    archive.add("init", 0o100755, b"12345")
    data = archive.finish()
    assert data[:14] == b"07070100000001"
    entry = data.index(b"070701", 1)
    assert entry % 4 == 0
    assert data[entry + 54 : entry + 62] == b"00000005"
    content = data.index(b"12345")
    assert content % 4 == 0
    assert data[content + 8 : content + 14] == b"070701"
    assert data.rstrip(b"\0").endswith(b"TRAILER!!!")


def test_initrd_has_modules_in_order_and_the_scripts() -> None:
    data = make_initrd(b"BUSYBOX", [("one", b"1111"), ("two", b"2222")])
    assert b"one\ntwo\n" in data
    for name in (b"init\0", b"crosvm/session\0", b"crosvm/dhcp\0", b"modules/two.ko\0"):
        assert name in data


def test_applets_are_read_without_running_busybox() -> None:
    data = b"ELF 2[\0002[[\000[\0[[\0ash\0busybox\0dpkg\0init\0../x\0xxd\0\0after\0"
    assert applets(data) == ["ash", "xxd"]


def test_busybox_without_a_table_is_refused() -> None:
    with pytest.raises(HostError, match="no table of commands"):
        applets(b"\x7fELF")
