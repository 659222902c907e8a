# SPDX-License-Identifier: BSD-3-Clause
"""The parts of the guest builders that need no packages."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

import pytest

from tests.guests import builtin, bzimage, cache, debian, newer, root
from tests.guests.cache import BuildError

DEB822 = """\
Types: deb
URIs: http://mirror.test/debian
Suites: bookworm bookworm-updates
Components: main
Signed-By: /usr/share/keyrings/d.gpg

Types: deb
URIs: http://vendor.test/
Suites: nodistro
Components: main

Enabled: no
Types: deb
URIs: http://off.test/
Suites: bookworm
Components: main
"""


def bz_image(payload: bytes, *, length: int | None = None) -> bytes:
    image = bytearray(2 * 512)
    image[bzimage.SETUP_SECTORS_AT] = 1
    image[bzimage.MAGIC_AT : bzimage.MAGIC_AT + 4] = b"HdrS"
    size = len(payload) if length is None else length
    struct.pack_into("<II", image, bzimage.PAYLOAD_AT, 0, size)
    return bytes(image) + payload


def gzip(data: bytes) -> bytes:
    packer = zlib.compressobj(wbits=31)
    return packer.compress(data) + packer.flush() + len(data).to_bytes(4, "little")


def test_suite_sources_takes_only_our_suite() -> None:
    one_line = (
        "deb http://m.test/d bookworm main\n#deb x\ndeb http://v.test/ apt main\ndeb-src x y\n"
    )
    assert debian.suite_sources([DEB822, one_line]).splitlines() == [
        "deb [signed-by=/usr/share/keyrings/d.gpg] http://mirror.test/debian bookworm main",
        "deb [signed-by=/usr/share/keyrings/d.gpg] http://mirror.test/debian bookworm-updates main",
        "deb http://m.test/d bookworm main",
    ]


def test_machine_sources_serve_another_suite_from_the_same_mirrors(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "sources.list.d").mkdir()
    (tmp_path / "sources.list.d/debian.sources").write_text(DEB822)
    monkeypatch.setattr(debian, "SOURCES", tmp_path)
    assert debian.machine_sources("trixie").splitlines() == [
        "deb [signed-by=/usr/share/keyrings/d.gpg] http://mirror.test/debian trixie main",
        "deb [signed-by=/usr/share/keyrings/d.gpg] http://mirror.test/debian trixie-updates main",
    ]


def test_machine_without_our_suite_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(debian, "SOURCES", tmp_path)
    with pytest.raises(BuildError, match="no apt source of Debian bookworm under"):
        debian.machine_sources("trixie")


def test_kernel_package_of_the_newer_debian_is_named_by_its_file() -> None:
    kernel = Path("kernel/linux-image-6.12.1+deb13-cloud-amd64_6.12.1-1_amd64.deb")
    assert newer.Newer(Path("tree"), kernel).package == "linux-image-6.12.1+deb13-cloud-amd64"


def test_package_list_drops_comments() -> None:
    assert debian.package_list("a\n# b c\nd  # e\n\n") == ["a", "d"]


def test_unpack_returns_the_elf_inside() -> None:
    assert bzimage.unpack(bz_image(gzip(b"\x7fELF and so on"))) == b"\x7fELF and so on"


@pytest.mark.parametrize(
    ("image", "reason"),
    [
        pytest.param(b"", "no HdrS", id="empty"),
        pytest.param(b"\x7fELF" + bytes(2000), "no HdrS", id="elf"),
        pytest.param(bz_image(b""), "payload of 0 bytes", id="no-payload"),
        pytest.param(bz_image(b"abcd", length=5), "payload of 5 bytes at 0x400", id="truncated"),
        pytest.param(bz_image(b"abcdefgh"), "unknown compression 616263", id="unknown"),
        pytest.param(bz_image(b"\x1f\x8bcorrupt"), "gzip: no ELF file", id="corrupt"),
        pytest.param(bz_image(gzip(b"#!/bin/sh")), "gzip: no ELF file", id="no-elf"),
    ],
)
def test_unpack_bad_image_raises(image: bytes, reason: str) -> None:
    with pytest.raises(BuildError, match=reason):
        bzimage.unpack(image)


def test_libraries_are_found_in_ldd_output() -> None:
    shown = (
        "/usr/bin/fio:\n\tlinux-vdso.so.1 (0x7ff)\n\tlibc.so.6 => /lib/x/libc.so.6 (0x7f)\n"
        "\t/lib64/ld-linux.so.2 (0x7f)\n/bin/static:\n\tstatically linked\n"
    )
    assert root.libraries(shown) == {"/lib/x/libc.so.6", "/lib64/ld-linux.so.2"}


def test_missing_options_names_what_kconfig_dropped() -> None:
    wanted = "# comment\nCONFIG_A=y\nCONFIG_B=y\n"
    assert builtin.missing_options(wanted, "CONFIG_A=y\n# CONFIG_B is not set\n") == ["CONFIG_B=y"]


def test_content_key_differs_by_content_name_and_border(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("1")
    (tmp_path / "b").write_text("1")
    keys = [
        cache.content_key(inputs)
        for inputs in (["ab"], ["a", "b"], [tmp_path], [tmp_path / "a"], [tmp_path / "b"])
    ]
    assert len(set(keys)) == len(keys)


def test_artefact_is_built_once_for_each_content(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cache, "CACHE", tmp_path)
    built: list[str] = []

    def build(target: Path) -> None:
        built.append(target.name)
        (target / "file").touch()

    first = cache.artefact("area", "thing", ["1"], build)
    assert cache.artefact("area", "thing", ["1"], build) == first
    second = cache.artefact("area", "thing", ["2"], build)
    assert len(built) == 2
    assert (second / "file").exists()
    assert not first.exists()


def test_artefact_failed_build_leaves_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache, "CACHE", tmp_path)

    def fail(target: Path) -> None:
        (target / "half").touch()
        raise BuildError("no")

    for _ in range(2):
        with pytest.raises(BuildError, match="no"):
            cache.artefact("area", "thing", [], fail)


@pytest.mark.parametrize(
    ("argv", "reason"),
    [
        pytest.param(["/no/such/program"], "/no/such/program is not installed", id="missing"),
        pytest.param(["sh", "-c", "echo why; exit 3"], "step: status 3\nwhy", id="status"),
    ],
)
def test_run_failure_says_what_and_why(argv: list[str], reason: str) -> None:
    with pytest.raises(BuildError, match=reason):
        cache.run("step", argv)
