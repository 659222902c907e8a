# SPDX-License-Identifier: BSD-3-Clause
"""Guests are made completely or not at all; scripts play apt, mmdebstrap and mksquashfs."""

from __future__ import annotations

import fcntl
import os
import tarfile
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

import pytest

from crosvm_py.cli.commands import guest_shell
from crosvm_py.cli.dispatch import execute
from crosvm_py.file_parser.guest import read_guest
from crosvm_py.guest import make
from crosvm_py.guest.apt import Source
from crosvm_py.guest.make import GuestOrder, make_guest
from sys_util.errors import ConfigError, HostError, UsageError, describe
from tests.crosvm_py.guest.test_packages import module, tar

if TYPE_CHECKING:
    from collections.abc import Callable

KERNEL = "linux-image-6.1.0-1-cloud-amd64"
BUSYBOX = b"\x7fELF\0[\0[[\0ash\0xxd\0\0"
SCRIPTS = {
    "apt-config": """echo 'Acquire::http::Proxy "http://proxy.test/";'""",
    "apt-cache": f"""echo '{KERNEL}-meta'; echo '  Depends: {KERNEL}'""",
    "apt-get": """case "$*" in
        *update) ;;
        *zzz) echo 'E: Unable to locate package zzz' >&2; echo 'E: more' >&2; exit 100 ;;
        *--print-uris*)
            for file in "$PACKAGES"/*; do
                echo "'http://m.test/x' $(basename "$file") $(stat -c %s "$file") SHA256:00"
            done ;;
        *" download "*) for package in "${@:3}"; do cp "$PACKAGES/$package"_* .; done ;;
        esac""",
    "dpkg-deb": 'cat "$2"',
    "mksquashfs": 'cat >"$2"',
    "mmdebstrap": "echo 'I: using /tmp/x' >&2; echo 'I: running apt...' >&2; echo tree",
    "newuidmap": "true",
}


class Bench:
    """A folder of programs that note how they are called, and one for guests."""

    def __init__(self, folder: Path) -> None:
        self.guests = folder / "guests"
        self.programs = folder / "programs"
        self.packages = folder / "packages"
        self.calls = folder / "calls"
        for made in (self.guests, self.programs, self.packages):
            made.mkdir()
        for name, script in SCRIPTS.items():
            self.program(name, script)
        self.package(
            KERNEL,
            ("./boot/vmlinuz-6.1", tarfile.REGTYPE, b"KERNEL"),
            ("./lib/modules/6.1/kernel/virtio_blk.ko", tarfile.REGTYPE, module()),
        )
        self.package("busybox-static", ("./bin/busybox", tarfile.REGTYPE, BUSYBOX))
        self.lines: list[str] = []

    def program(self, name: str, script: str) -> None:
        path = self.programs / name
        path.write_text(f'#!/bin/bash\necho "{name} $*" >>"$CALLS"\n{script}\n')
        path.chmod(0o755)

    def package(self, name: str, *entries: tuple[str, bytes, bytes]) -> None:
        (self.packages / f"{name}_1_amd64.deb").write_bytes(tar(*entries))

    def make(self, kind: str = "minimal", *packages: str) -> Path:
        target = self.guests / kind
        make_guest(GuestOrder(kind, Source(), packages), str(target), self.lines.append)
        return target

    def called(self, name: str) -> list[str]:
        lines = self.calls.read_text().splitlines()
        return [line for line in lines if line.startswith(f"{name} ")]


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bench:
    found = Bench(tmp_path)
    monkeypatch.setenv("PATH", f"{found.programs}:/usr/bin:/bin")
    monkeypatch.setenv("PACKAGES", str(found.packages))
    monkeypatch.setenv("CALLS", str(found.calls))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(make, "_FILES", ())
    return found


def test_minimal_guest_is_complete(bench: Bench) -> None:
    found = read_guest(str(bench.make()))
    assert Path(found.kernel).read_bytes() == b"KERNEL"
    assert b"modules/virtio_blk.ko" in Path(found.initrd or "").read_bytes()
    with tarfile.open(found.root) as root:
        assert root.getmember("bin/ash").linkname == "busybox"
        assert root.getmember("bin/busybox").mode == 0o755
    assert os.listdir(bench.guests) == ["minimal"]


def test_progress_says_which_step_of_how_many(bench: Bench) -> None:
    bench.make()
    steps = [line.split()[2] for line in bench.lines]
    assert steps == sorted(steps)
    assert (steps[0], steps[-1]) == ("1/5", "5/5")
    assert any("downloading 2 packages (" in line for line in bench.lines)


def test_debian_guest_has_the_packages(bench: Bench) -> None:
    found = read_guest(str(bench.make("debian", "curl", "python3")))
    assert Path(found.root or "").read_bytes() == b"tree\n"
    (call,) = bench.called("mmdebstrap")
    assert "--include=curl,python3 " in call
    assert any("running apt..." in line for line in bench.lines)
    assert not any("/tmp/x" in line for line in bench.lines)


def test_package_that_does_not_exist_is_named_before_anything_is_made(bench: Bench) -> None:
    with pytest.raises(HostError, match="status 100: E: Unable to locate package zzz"):
        bench.make("debian", "zzz")
    assert bench.called("mmdebstrap") == []


def test_packages_are_downloaded_once(bench: Bench) -> None:
    for kind in ("minimal", "debian"):
        bench.make(kind)
    downloads = [call for call in bench.called("apt-get") if "-q download" in call]
    assert len(downloads) == 1
    assert sum("update" in call for call in bench.called("apt-get")) == 1


def test_proxy_of_the_host_is_taken_and_nothing_else_of_its_apt(bench: Bench) -> None:
    bench.make()
    (settings,) = (bench.guests.parent / "cache").glob("crosvm-py/*/apt.conf")
    text = settings.read_text()
    assert 'Acquire::http::Proxy "http://proxy.test/";' in text
    assert 'Dir::Etc::Parts "/dev/null";' in text


@pytest.mark.parametrize(
    ("program", "script", "reason"),
    [
        pytest.param(
            "mmdebstrap",
            "echo 'I: x' >&2; echo 'E: no such package: zzz' >&2; echo 'I: end' >&2; exit 25",
            "mmdebstrap: status 25: E: no such package: zzz",
            id="mmdebstrap",
        ),
        pytest.param(
            "mksquashfs", "cat >/dev/null; echo full; exit 1", "mksquashfs", id="squashfs"
        ),
        pytest.param(
            "apt-get", "echo 'E: no net' >&2; exit 100", "status 100: E: no net", id="apt"
        ),
        pytest.param("apt-cache", "true", "apt knows no package behind", id="unknown"),
        pytest.param("dpkg-deb", "echo bad >&2; exit 2", "unpacking: ", id="dpkg-deb"),
    ],
)
def test_failure_is_one_line_and_leaves_nothing(
    bench: Bench, program: str, script: str, reason: str
) -> None:
    bench.program(program, script)
    with pytest.raises(HostError) as caught:
        bench.make("debian")
    assert reason in describe(caught.value)
    assert "\n" not in describe(caught.value)
    assert os.listdir(bench.guests) == []


def test_packer_that_ends_early_is_the_reason_for_a_minimal_guest_too(bench: Bench) -> None:
    bench.program("mksquashfs", "echo no space; exit 1")
    bench.package("busybox-static", ("./bin/busybox", tarfile.REGTYPE, BUSYBOX + bytes(1 << 20)))
    with pytest.raises(HostError, match="mksquashfs: status 1: no space"):
        bench.make()


def test_interrupt_leaves_nothing(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(_path: str) -> NoReturn:
        raise KeyboardInterrupt

    monkeypatch.setattr(make, "_busybox", interrupt)
    with pytest.raises(KeyboardInterrupt):
        bench.make()
    assert os.listdir(bench.guests) == []


def test_every_missing_program_is_named_in_one_line(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    monkeypatch.setattr(make, "_FILES", (("/nowhere/keyring.gpg", "debian-archive-keyring"),))
    with pytest.raises(ConfigError) as caught:
        bench.make("debian")
    for word in ("apt-get", "dpkg-deb", "mksquashfs", "mmdebstrap", "/nowhere/keyring.gpg"):
        assert word in str(caught.value)
    assert "apt dpkg squashfs-tools mmdebstrap" in str(caught.value)
    assert os.listdir(bench.guests) == []


@pytest.mark.parametrize(
    "there",
    [
        pytest.param(lambda path: path.mkdir(), id="folder"),
        pytest.param(lambda path: path.touch(), id="file"),
        pytest.param(lambda path: path.symlink_to("nowhere"), id="link"),
    ],
)
def test_what_is_there_stays(bench: Bench, there: Callable[[Path], None]) -> None:
    there(bench.guests / "minimal")
    with pytest.raises(ConfigError, match="minimal: is there already"):
        bench.make()
    assert not bench.calls.exists()


def test_what_an_interrupted_run_left_is_removed_and_what_is_being_made_is_not(
    bench: Bench,
) -> None:
    left, busy = (bench.guests / f"{make.PARTIAL}{name}" for name in ("left", "busy"))
    elsewhere = bench.guests.parent / "elsewhere"
    for folder in (left, busy, elsewhere):
        folder.mkdir()
    link = bench.guests / f"{make.PARTIAL}link"
    link.symlink_to(elsewhere)
    lock = os.open(busy, os.O_RDONLY)
    fcntl.flock(lock, fcntl.LOCK_EX)
    bench.make()
    os.close(lock)
    assert sorted(os.listdir(bench.guests)) == [busy.name, link.name, "minimal"]
    assert elsewhere.is_dir()


@pytest.mark.parametrize("kernels", [0, 2])
def test_package_without_one_kernel_is_refused(bench: Bench, kernels: int) -> None:
    names = [f"./boot/vmlinuz-{number}" for number in range(kernels)]
    bench.package(KERNEL, *((name, tarfile.REGTYPE, b"K") for name in names))
    with pytest.raises(HostError, match=f"{kernels} kernels in it, not one"):
        bench.make()


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        pytest.param(["debiam"], "'debiam' is none of minimal, debian, did you", id="kind"),
        pytest.param(["minimal", "--packages", "curl"], "--packages is for debian", id="minimal"),
        pytest.param(["--packages", "-o"], "'-o' is not the name of a Debian package", id="dash"),
        pytest.param(["--packages", "a;b"], "'a;b' is not the name", id="shell"),
        pytest.param(["--packages", "curl=1"], "'curl=1' is not the name", id="version"),
        pytest.param(["--suite", "../x"], "'../x' is not the name of a Debian rel", id="suite"),
        pytest.param(["--mirror", "file:/etc"], "is not an address", id="file"),
        pytest.param(["--mirror", "http://a b"], "is not an address", id="blank"),
        pytest.param(["--mirror", "http://a]\nx"], "is not an address", id="line"),
    ],
)
def test_words_that_cannot_be_are_refused(bench: Bench, words: list[str], reason: str) -> None:
    with pytest.raises(UsageError, match="guest make") as caught:
        execute(["guest", "make", *words])
    assert reason in str(caught.value)
    assert not bench.calls.exists()


def test_shell_without_a_folder_makes_a_minimal_guest_once(
    bench: Bench, capfd: pytest.CaptureFixture[str]
) -> None:
    first = guest_shell._own_guest()
    assert "5/5" in capfd.readouterr().err
    assert guest_shell._own_guest() == first
    assert capfd.readouterr().err == ""
    assert Path(first).is_relative_to(bench.guests.parent / "cache/crosvm-py")
    assert read_guest(first).root == f"{first}/root.squashfs"
