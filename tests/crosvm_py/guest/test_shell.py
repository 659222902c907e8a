# SPDX-License-Identifier: BSD-3-Clause
"""A throw-away guest: the options that it is run with, and the status that it reports."""

from __future__ import annotations

import base64
import os
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from crosvm_py.cli.commands import guest_shell
from crosvm_py.cli.commands.guest_shell import SHELL, session_status
from crosvm_py.cli.dispatch import execute
from crosvm_py.cli.grammar.options import parse
from crosvm_py.guest.throwaway import throwaway_copy
from sys_util.errors import ConfigError, UsageError
from tests.support.command_line import config_of

if TYPE_CHECKING:
    from crosvm_py.config import RunConfig

MIB = 1 << 20


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A guest with a read-only root; there is no passt, and no terminal."""
    for name in ("k", "r"):
        (tmp_path / name).write_bytes(b"x" * 512)
    (tmp_path / "guest.conf").write_text("kernel=k\nroot=r\nparams=quiet\n")
    monkeypatch.setenv("PATH", "/nowhere")
    monkeypatch.delenv("TERM", raising=False)
    return tmp_path


def words_of(folder: Path, *options: str) -> list[str]:
    arguments = parse([*options, str(folder)], SHELL.options, SHELL.positional)
    return guest_shell._words(arguments, str(folder))


@pytest.mark.parametrize(
    ("said", "status"),
    [
        pytest.param(b"0\r\n", 0, id="zero"),
        pytest.param(b"255\r\n", 255, id="most"),
        pytest.param(b"3", 3, id="cut-off"),
        pytest.param(b"", None, id="nothing"),
        pytest.param(b"256\r\n", None, id="too-large"),
        pytest.param(b"-1\n", None, id="negative"),
        pytest.param(b"\xb2\n", None, id="superscript"),
        pytest.param(b"1 2\r\n", None, id="two"),
        pytest.param(b"99999", None, id="long"),
        pytest.param(bytes(range(5)), None, id="noise"),
    ],
)
def test_status_of_a_session_is_a_number_or_nothing(said: bytes, status: int | None) -> None:
    assert session_status(said) == status


def test_what_a_guest_says_is_read_once_and_bounded() -> None:
    reading, writing = os.pipe2(os.O_NONBLOCK)
    assert guest_shell._said(reading) == b""
    os.write(writing, b"7\r\n" + b"x" * 1000)
    assert guest_shell._said(reading) == b"7\r\nxx"
    os.close(writing)
    os.close(reading)


def test_shell_runs_the_folder_with_a_session(folder: Path) -> None:
    config = config_of(*words_of(folder, "-c", "2", "-m", "512"))
    assert config.params[0] == "quiet"
    assert "crosvm.session" in config.params[1]
    assert (config.cpus, config.memory_bytes) == (2, 512 * MIB)
    assert config.networks == ()


def test_command_is_on_the_command_line_of_the_kernel(folder: Path) -> None:
    config = config_of(*words_of(folder, "-e", "echo 'a b'; exit 3"))
    (word,) = [it for it in config.params if it.startswith("crosvm.run=")]
    assert base64.b64decode(word.partition("=")[2]) == b"echo 'a b'; exit 3"


@pytest.mark.parametrize(("end", "status"), [(0, 5), (33, 33)])
def test_status_is_the_guests_unless_the_run_failed(
    folder: Path, monkeypatch: pytest.MonkeyPatch, end: int, status: int
) -> None:
    """A run closes what is open at ``drop_inherited``, so the pipe must be made after that."""
    inherited: list[str] = []

    def run(config: RunConfig, _settings: object) -> int:
        (path,) = [spec.path for spec in config.serial if spec.path is not None]
        assert path.rpartition("/")[2] not in inherited
        Path(path).write_text("5\r\n")
        return end

    monkeypatch.setattr(guest_shell, "run_without_huge_pages", lambda: None)
    monkeypatch.setattr(
        guest_shell, "drop_inherited", lambda: inherited.extend(os.listdir("/proc/self/fd"))
    )
    monkeypatch.setattr(guest_shell, "run_config", run)
    assert execute(["guest", "shell", str(folder)]) == status


@pytest.mark.parametrize(
    ("term", "found"),
    [
        ("xterm-256color", ("TERM=xterm-256color",)),
        ("x init=/bin/sh", ()),
        ("x" * 41, ()),
        ("\xe4", ()),
    ],
)
def test_terminal_of_the_user_is_one_plain_word(
    folder: Path, monkeypatch: pytest.MonkeyPatch, term: str, found: tuple[str, ...]
) -> None:
    monkeypatch.setenv("TERM", term)
    config = config_of(*words_of(folder))
    assert tuple(it for it in config.params if "TERM" in it or "init=" in it) == found


def test_network_is_there_where_passt_is(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    words_of(folder)
    assert "no network: passt is not installed (apt install passt)" in capfd.readouterr().err
    (folder / "passt").touch(0o755)
    monkeypatch.setenv("PATH", str(folder))
    assert config_of(*words_of(folder)).networks[0].user
    assert config_of(*words_of(folder, "--net", "none")).networks == ()


def test_writable_root_is_a_copy(folder: Path) -> None:
    (folder / "guest.conf").write_text("kernel=k\nrwroot=r\n")
    (root,) = config_of(*words_of(folder)).disks
    fd = int(root.path.rpartition("/")[2])
    assert not root.read_only
    os.pwrite(fd, b"changed", 0)
    assert (folder / "r").read_bytes() == b"x" * 512
    assert os.fstat(fd).st_nlink == 0
    os.close(fd)


def test_copy_keeps_bytes_and_holes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    image = tmp_path / "image"
    with image.open("wb") as file:
        file.truncate(8 * MIB)
        os.pwrite(file.fileno(), b"data", 3 * MIB)
    monkeypatch.setattr("crosvm_py.guest.throwaway._FICLONE", 0)
    fd = throwaway_copy(str(image))
    assert os.pread(fd, 8 * MIB + 1, 0) == image.read_bytes()
    assert os.fstat(fd).st_blocks * 512 < MIB
    os.close(fd)


def test_copy_of_a_link_is_refused(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("/etc/passwd")
    with pytest.raises(ConfigError):
        throwaway_copy(str(tmp_path / "link"))


def test_other_network_is_refused() -> None:
    with pytest.raises(UsageError, match="--net: 'tap0' is neither user nor none"):
        execute(["guest", "shell", "--net", "tap0"])
