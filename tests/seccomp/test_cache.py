# SPDX-License-Identifier: BSD-3-Clause
"""The cache of compiled policies is used if only we can write to it, and ignored otherwise."""

from __future__ import annotations

import os
import subprocess
import sys
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from seccomp import PolicyError, cache, load_policy, loader
from seccomp.cache import LibraryStamp, cache_folder, cache_key
from sys_util import log

if TYPE_CHECKING:
    from collections.abc import Callable

ROOT = Path(__file__).parents[2]


class Compiler:
    """Count how often the compiler runs."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.runs = 0
        self._real = loader._compile
        monkeypatch.setattr(loader, "_compile", self._compile)

    def _compile(self, sources: dict[str, bytes], arch: str, *, log_failures: bool) -> bytes:
        self.runs += 1
        return self._real(sources, arch, log_failures=log_failures)


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "home"
    path.mkdir()
    monkeypatch.setenv("XDG_CACHE_HOME", str(path))
    return path / "crosvm-py"


@pytest.fixture
def policies(tmp_path: Path) -> Path:
    (tmp_path / "x.policy").write_text("@include inc.policy\nread: 1\n")
    (tmp_path / "inc.policy").write_text("write: 1\n")
    return tmp_path


@pytest.fixture
def compiler(monkeypatch: pytest.MonkeyPatch) -> Compiler:
    return Compiler(monkeypatch)


@pytest.fixture
def lines() -> list[str]:
    """Collect what is logged."""
    found: list[str] = []
    log.set_sink(lambda _level, _module, line: found.append(line))
    return found


@pytest.fixture(autouse=True)
def _restore_log(monkeypatch: pytest.MonkeyPatch) -> object:
    monkeypatch.setattr(cache, "_warned", False)
    yield
    log.set_sink(log.stderr_sink)


def load(policies: Path, *, log_failures: bool = False) -> bytes:
    return load_policy("x", directory=str(policies), log_failures=log_failures).bpf


def entry(home: Path) -> Path:
    (found,) = home.iterdir()
    return found


@pytest.mark.usefixtures("home")
def test_second_load_compiles_nothing(policies: Path, compiler: Compiler) -> None:
    assert load(policies) == load(policies)
    assert compiler.runs == 1


def test_folder_and_entry_are_private(policies: Path, home: Path) -> None:
    load(policies)
    assert home.stat().st_mode & 0o777 == 0o700
    assert entry(home).stat().st_mode & 0o777 == 0o600


@pytest.mark.usefixtures("home")
@pytest.mark.parametrize("name", ["x.policy", "inc.policy"])
def test_changed_text_compiles_again(policies: Path, compiler: Compiler, name: str) -> None:
    first = load(policies)
    (policies / name).write_text((policies / name).read_text() + "close: 1\n")
    assert load(policies) != first
    assert compiler.runs == 2


@pytest.mark.usefixtures("home")
def test_log_failures_has_an_entry_of_its_own(policies: Path, compiler: Compiler) -> None:
    assert load(policies) != load(policies, log_failures=True)
    assert compiler.runs == 2


def test_key_depends_on_where_one_file_ends() -> None:
    assert cache_key({"a": b"xy", "b": b""}, "") != cache_key({"a": b"x", "b": b"y"}, "")


@pytest.mark.usefixtures("home")
def test_include_that_went_missing_is_an_error_despite_the_cache(policies: Path) -> None:
    load(policies)
    (policies / "inc.policy").unlink()
    with pytest.raises(PolicyError, match=r"x.policy:1: file .*inc.policy does not exist"):
        load(policies)


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-8])


def flip_a_bit(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-3] ^= 1
    path.write_bytes(data)


def extend(path: Path) -> None:
    path.write_bytes(path.read_bytes() + b"12345678")


def replace_by_a_directory(path: Path) -> None:
    path.unlink()
    path.mkdir()


def replace_by_a_fifo(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def replace_by_a_symlink(path: Path) -> None:
    aside = path.with_suffix(".aside")
    path.rename(aside)
    path.symlink_to(aside)


def of_another_policy(path: Path) -> None:
    body = b"0" * 64 + path.read_bytes()[len(cache.FORMAT) + 32 + 64 :]
    path.write_bytes(cache.FORMAT + sha256(body).digest() + body)


def of_another_libseccomp(path: Path) -> None:
    body = path.read_bytes()[len(cache.FORMAT) + 32 :]
    key, library, bpf = body.split(b"\n", 2)
    body = b"\n".join([key, b"1 2 " + library.split(b" ", 2)[2], bpf])
    path.write_bytes(cache.FORMAT + sha256(body).digest() + body)


def of_a_library_without_a_name(path: Path) -> None:
    body = path.read_bytes()[len(cache.FORMAT) + 32 :]
    key, _, bpf = body.split(b"\n", 2)
    body = b"\n".join([key, b"1 2 /lib\0seccomp", bpf])
    path.write_bytes(cache.FORMAT + sha256(body).digest() + body)


@pytest.mark.usefixtures("lines")
@pytest.mark.parametrize(
    "damage",
    [
        truncate,
        flip_a_bit,
        extend,
        replace_by_a_directory,
        replace_by_a_fifo,
        replace_by_a_symlink,
        of_another_policy,
        of_another_libseccomp,
        of_a_library_without_a_name,
        lambda path: path.write_bytes(b""),
        lambda path: path.write_bytes(cache.FORMAT),
        lambda path: path.chmod(0o620),
        lambda path: path.chmod(0o602),
    ],
)
def test_bad_entry_is_compiled_instead(
    policies: Path, home: Path, compiler: Compiler, damage: Callable[[Path], object]
) -> None:
    good = load(policies)
    damage(entry(home))
    assert load(policies) == good
    assert compiler.runs == 2


def test_damaged_entry_is_written_again(policies: Path, home: Path, compiler: Compiler) -> None:
    load(policies)
    flip_a_bit(entry(home))
    load(policies)
    load(policies)
    assert compiler.runs == 2


@pytest.mark.parametrize("mode", [0o777, 0o770, 0o720, 0o702])
def test_folder_others_may_write_is_bypassed(
    policies: Path, home: Path, compiler: Compiler, lines: list[str], mode: int
) -> None:
    load(policies)
    home.chmod(mode)
    load(policies)
    assert compiler.runs == 2
    assert f"mode {mode:04o} lets others write" in lines[0]


def test_a_process_says_once_what_is_wrong_with_the_cache(
    policies: Path, home: Path, lines: list[str]
) -> None:
    load(policies)
    load(policies, log_failures=True)
    for path in home.iterdir():
        path.chmod(0o622)
    load(policies)
    load(policies, log_failures=True)
    home.chmod(0o777)
    load(policies)
    assert len(lines) == 1


def test_folder_that_is_a_symlink_is_bypassed(
    policies: Path, home: Path, tmp_path: Path, compiler: Compiler, lines: list[str]
) -> None:
    (tmp_path / "real").mkdir(mode=0o700)
    home.symlink_to(tmp_path / "real")
    load(policies)
    load(policies)
    assert compiler.runs == 2
    assert list((tmp_path / "real").iterdir()) == []
    assert "is not used" in lines[0]


def test_folder_that_is_a_file_is_bypassed(policies: Path, home: Path, lines: list[str]) -> None:
    home.write_text("")
    assert load(policies)
    assert "is not used" in lines[0]


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
def test_folder_of_another_user_is_bypassed(
    policies: Path, home: Path, compiler: Compiler, lines: list[str]
) -> None:
    load(policies)
    os.chown(home, 12345, 12345)
    load(policies)
    assert compiler.runs == 2
    assert "belongs to uid 12345" in lines[0]


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
def test_entry_of_another_user_is_bypassed(
    policies: Path, home: Path, compiler: Compiler, lines: list[str]
) -> None:
    load(policies)
    os.chown(entry(home), 12345, 12345)
    load(policies)
    assert compiler.runs == 2
    assert "belongs to uid 12345" in lines[0]


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
def test_nothing_is_made_in_the_home_of_another_user(policies: Path, home: Path) -> None:
    os.chown(home.parent, 12345, 12345)
    assert load(policies)
    assert not home.exists()


def test_home_that_cannot_be_made_is_no_error(
    policies: Path, monkeypatch: pytest.MonkeyPatch, lines: list[str]
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", "/proc/no/such")
    assert load(policies)
    assert lines == []


def test_relative_cache_home_is_ignored(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    monkeypatch.setenv("HOME", "/home/me")
    assert cache_folder() == "/home/me/.cache/crosvm-py"


def test_old_entries_are_dropped(home: Path) -> None:
    library = LibraryStamp.of(sys.executable)
    for number in range(140):
        cache.store(f"{number:064}", b"12345678", library)
    assert len(list(home.iterdir())) <= 128
    assert cache.load(f"{139:064}") == b"12345678"


def test_without_a_library_stamp_nothing_is_stored(home: Path) -> None:
    cache.store("0" * 64, b"12345678", LibraryStamp.of("/no/such/libseccomp.so"))
    assert not home.exists()


def test_hit_imports_neither_parser_nor_libseccomp(policies: Path, home: Path) -> None:
    script = (
        "import sys; from seccomp import load_policy\n"
        f"load_policy('x', directory={str(policies)!r})\n"
        "names = 'seccomp.parser seccomp.compiler pyseccomp ctypes hashlib logging re'.split()\n"
        "print([name for name in names if name in sys.modules])"
    )
    load(policies)
    done = subprocess.run(
        [sys.executable, "-c", script],
        env={"XDG_CACHE_HOME": str(home.parent), "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=True,
    )
    loaded = done.stdout
    assert "seccomp.parser" not in loaded
    assert "ctypes" not in loaded
    assert "pyseccomp" not in loaded
    assert "hashlib" not in loaded
    assert "logging" not in loaded


@pytest.mark.parametrize("name", ["", ".", "../x", "a/b", "/etc/passwd", "a\0b", ".hidden"])
def test_name_that_leads_elsewhere_is_refused(policies: Path, name: str) -> None:
    with pytest.raises(PolicyError, match="is no policy name"):
        load_policy(name, directory=str(policies))


def test_missing_policy_names_the_path(policies: Path) -> None:
    with pytest.raises(PolicyError, match=rf"policy {policies}/no.policy does not exist"):
        load_policy("no", directory=str(policies))


def test_policy_knows_its_name_and_path(policies: Path) -> None:
    policy = load_policy("x", directory=str(policies))
    assert (policy.name, policy.path) == ("x", str(policies / "x.policy"))


@pytest.mark.usefixtures("home")
def test_shipped_policies_are_found_without_a_directory() -> None:
    policy = load_policy("rng_device")
    assert policy.path == str(ROOT / "seccomp" / os.uname().machine / "rng_device.policy")


def test_unknown_architecture_is_refused(policies: Path) -> None:
    with pytest.raises(PolicyError, match="no seccomp tables for architecture 'vax'"):
        load_policy("x", directory=str(policies), arch="vax")
