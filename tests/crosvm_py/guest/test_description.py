# SPDX-License-Identifier: BSD-3-Clause
"""A guest's folder is not trusted: what is accepted, and what is refused."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest

from crosvm_py.file_parser.guest import read_guest
from crosvm_py.guest.description import (
    MAX_BYTES,
    GuestDescription,
    parse,
    write_description,
)
from crosvm_py.kinds.order import pack_spec, unpack_spec
from crosvm_py.vmm.kernel_parser import start_kernel_parser
from devices.virtio.block.spec import BlockSpec
from disk.image import open_image
from kernel_loader.load import open_initrd
from sys_util.errors import ConfigError, HostError, describe
from tests.support.command_line import config_of

FULL = GuestDescription("vmlinuz", "initrd.img", "root.img", params="quiet panic=1")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("vmlinuz", "initrd.img", "root.img"):
        (tmp_path / name).write_bytes(b"x")
    (tmp_path / "guest.conf").write_bytes(write_description(FULL))
    return tmp_path


def test_what_is_written_is_read() -> None:
    assert parse("f", write_description(FULL)) == FULL


def test_comments_empty_lines_and_signs_of_equality_are_fine() -> None:
    found = parse("f", b"# a comment\n\nkernel=k\nparams=root=/dev/vda a=b=c\n\n")
    assert found == GuestDescription("k", params="root=/dev/vda a=b=c")


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        pytest.param(b"", "f: no line kernel=FILE", id="empty"),
        pytest.param(b"initrd=i\n", "f: no line kernel=FILE", id="no-kernel"),
        pytest.param(b"kernel\n", "f:1: not a line KEY=VALUE", id="no-equals"),
        pytest.param(b"kernel=k\nkernel=k\n", "f:2: kernel is there twice", id="twice"),
        pytest.param(b"kernel=k\ndisk=d\n", "f:2: unknown key 'disk'; known are", id="unknown"),
        pytest.param(b" kernel=k\n", "f:1: unknown key ' kernel'", id="blank-first"),
        pytest.param(b"a" * 99 + b"=k\n", f"unknown key '{'a' * 40}'", id="long-key"),
        pytest.param(b"kernel=\n", "f:1: kernel is empty", id="empty-name"),
        pytest.param(b"kernel=..\n", "'..' is not the name of a file in", id="parent"),
        pytest.param(b"kernel=.\n", "'.' is not the name", id="folder"),
        pytest.param(b"kernel=.hidden\n", "'.hidden' is not the name", id="dot-first"),
        pytest.param(b"kernel=../k\n", "'../k' is not the name", id="above"),
        pytest.param(b"kernel=a/k\n", "'a/k' is not the name", id="below"),
        pytest.param(b"kernel=/etc/shadow\n", "is not the name of a file", id="absolute"),
        pytest.param(b"kernel=k,ro\n", "'k,ro' is not the name", id="comma"),
        pytest.param(b"kernel=k k\n", "'k k' is not the name", id="blank"),
        pytest.param(b"kernel=%s\n" % (b"k" * 101), "longer than 100 characters", id="long-name"),
        pytest.param(b"kernel=k\nroot=a\nrwroot=b\n", "exclude each other", id="two-roots"),
        pytest.param(
            b"kernel=k\nparams=%s\n" % (b"p" * 1025), "longer than 1024", id="long-params"
        ),
        pytest.param(b"kernel=k\0\n", "control characters", id="nul"),
        pytest.param(b"kernel=k\r\n", "control characters", id="carriage-return"),
        pytest.param(b"kernel=k\nparams=\x1b]0;x\x07\n", "control characters", id="escape"),
        pytest.param(b"kernel=\xc3\xa4\n", "not plain ASCII", id="utf-8"),
        pytest.param(b"\xff\xfe", "not plain ASCII", id="binary"),
    ],
)
def test_description_that_is_not_as_it_must_be_is_refused(data: bytes, reason: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse("f", data)
    assert reason in str(caught.value)
    assert "\n" not in str(caught.value)


def test_folder_gives_paths(folder: Path) -> None:
    found = read_guest(str(folder))
    assert found.kernel == f"{folder}/vmlinuz"
    assert (found.initrd, found.root) == (f"{folder}/initrd.img", f"{folder}/root.img")
    assert found.rwroot is None


def make_link(path: Path) -> None:
    path.symlink_to("/etc/passwd")


def make_socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(str(path))


@pytest.mark.parametrize("name", ["vmlinuz", "initrd.img", "root.img"])
@pytest.mark.parametrize(
    ("make", "reason"),
    [
        pytest.param(make_link, "is a symbolic link, which is not followed", id="link"),
        pytest.param(os.mkfifo, "is not a regular file", id="pipe"),
        pytest.param(os.mkdir, "is not a regular file", id="folder"),
        pytest.param(make_socket, "is not a regular file", id="socket"),
        pytest.param(lambda path: None, "No such file", id="nothing"),
    ],
)
def test_file_of_another_kind_is_refused(
    folder: Path, name: str, make: object, reason: str
) -> None:
    (folder / name).unlink()
    assert callable(make)
    make(folder / name)
    with pytest.raises(ConfigError) as caught:
        read_guest(str(folder))
    assert reason in describe(caught.value)
    assert name in describe(caught.value)


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        pytest.param(make_link, "Too many levels of symbolic links", id="link"),
        pytest.param(os.mkfifo, "not a regular file", id="pipe"),
        pytest.param(os.mkdir, "not a regular file", id="folder"),
        pytest.param(lambda path: path.write_bytes(b"#" * (MAX_BYTES + 1)), "longer", id="long"),
        pytest.param(lambda path: None, "a folder without guest.conf is no guest", id="nothing"),
    ],
)
def test_description_of_another_kind_is_refused(folder: Path, make: object, reason: str) -> None:
    (folder / "guest.conf").unlink()
    assert callable(make)
    make(folder / "guest.conf")
    with pytest.raises(ConfigError) as caught:
        read_guest(str(folder))
    assert reason in describe(caught.value)


def test_run_of_a_folder_takes_what_it_says(folder: Path) -> None:
    config = config_of(str(folder))
    (root,) = config.disks
    assert (config.kernel, config.initrd) == (f"{folder}/vmlinuz", f"{folder}/initrd.img")
    assert (root.path, root.read_only) == (f"{folder}/root.img", True)
    assert config.root_parameter() == "root=/dev/vda ro"
    assert config.params == ("quiet panic=1",)


def test_run_of_a_folder_with_a_writable_root(folder: Path) -> None:
    (folder / "guest.conf").write_text("kernel=vmlinuz\nrwroot=root.img\n")
    config = config_of(str(folder))
    assert config.root_parameter() == "root=/dev/vda rw"


def test_options_come_after_what_the_folder_says_and_win(folder: Path) -> None:
    words = ("-i", "other.img", "-p", "debug", "-d", "d.img", "--rwroot", "other.root")
    config = config_of(*words, str(folder))
    assert config.initrd == "other.img"
    assert config.params == ("quiet panic=1", "debug")
    assert [disk.path for disk in config.disks] == ["d.img", "other.root"]
    assert config.root_parameter() == "root=/dev/vdb rw"


def test_more_disks_come_after_the_root_of_the_folder(folder: Path) -> None:
    config = config_of("-d", "d.img", str(folder))
    assert [disk.path for disk in config.disks] == [f"{folder}/root.img", "d.img"]


def test_link_that_comes_after_the_check_is_not_followed(folder: Path, tmp_path: Path) -> None:
    config = config_of(str(folder))
    secret = tmp_path / "secret"
    secret.write_bytes(b"s" * 512)
    for name in ("vmlinuz", "initrd.img", "root.img"):
        (folder / name).unlink()
        (folder / name).symlink_to(secret)
    assert config.initrd is not None
    with pytest.raises(HostError, match="open initrd") as caught:
        open_initrd(config.initrd, follow=config.initrd not in config.guest_files)
    assert "symbolic link" in describe(caught.value)
    with pytest.raises(HostError, match="open kernel"):
        start_kernel_parser(config)
    with pytest.raises(ConfigError, match=r"guest root .*root\.img"):
        open_image(config.disks[0])


def test_root_of_a_folder_with_a_long_name_reaches_its_device(folder: Path) -> None:
    (root,) = config_of(str(folder)).disks
    assert len(root.path) > 32
    assert unpack_spec(BlockSpec, pack_spec(root, path="")).root
