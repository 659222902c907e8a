# SPDX-License-Identifier: BSD-3-Clause
"""The installed program: its Python is isolated, so that nobody else's code gets into it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import pytest

from crosvm_py import bundle
from tests.bench.install import install
from tests.guests.baremetal.build import build_guest

ROOT = Path(__file__).parent.parent
SCRIPT = ROOT / "bin" / "crosvm"
MARK = "not ours"
# All processes of a run together, as strace counts them. It was 5,136 before there was a bundle.
MOST_CALLS = 2500
INTRUDER = f"import sys\nsys.stderr.write({MARK!r})\n"

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Install the program in an environment of its own; its packages are those of this checkout."""
    home = tmp_path_factory.mktemp("installed") / "env"
    venv.create(home, symlinks=True, system_site_packages=True)
    packages = sysconfig.get_path("purelib", "venv", vars={"base": str(home)})
    paths = (ROOT, sysconfig.get_path("purelib"), sysconfig.get_path("platlib"))
    (Path(packages) / "crosvm.pth").write_text("".join(f"{path}\n" for path in paths))
    return Path(shutil.copy(SCRIPT, home / "bin"))


@pytest.fixture
def intruders(tmp_path: Path) -> Path:
    """Put modules of others where Python may look for ours."""
    user = tmp_path / f"lib/python{sys.version_info[0]}.{sys.version_info[1]}/site-packages"
    user.mkdir(parents=True)
    for folder in (tmp_path, user):
        for name in ("sitecustomize.py", "usercustomize.py", "msgpack.py"):
            (folder / name).write_text(INTRUDER)
        (folder / "crosvm_py").mkdir()
        (folder / "crosvm_py" / "__init__.py").write_text(INTRUDER)
    (user / "intruder.pth").write_text(f"import sys; sys.stderr.write({MARK!r})\n")
    return tmp_path


@pytest.fixture(scope="module")
def copied(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Install the program as pip does: its packages are in the environment."""
    return install(tmp_path_factory.mktemp("copied") / "env")


def run(program: Path, intruders: Path, *words: str) -> subprocess.CompletedProcess[str]:
    home = {"PYTHONPATH": str(intruders), "PYTHONUSERBASE": str(intruders), "HOME": str(intruders)}
    return subprocess.run(
        [program, *words],
        cwd=intruders,
        env={"PATH": os.defpath, "PYTHONSTARTUP": "x", "PYTHONINSPECT": "1", **home},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )


def test_installed_program_runs_no_code_of_others(program: Path, intruders: Path) -> None:
    done = run(program, intruders, "version")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("crosvm-py ")


def test_module_runs_what_its_environment_says(program: Path, intruders: Path) -> None:
    done = run(program.parent / "python3", intruders, "-m", "crosvm_py", "version")
    assert MARK in done.stderr  # what the isolated mode is for


def test_program_is_found_behind_links_and_by_its_name(program: Path, tmp_path: Path) -> None:
    (tmp_path / "one").symlink_to(program)
    (tmp_path / "crosvm").symlink_to("one")
    for words in (["./crosvm"], ["crosvm"], [f"{tmp_path}/one"]):
        done = subprocess.run(
            [*words, "version"],
            cwd=tmp_path,
            env={"PATH": f"{tmp_path}:{os.defpath}"},
            capture_output=True,
            text=True,
            check=True,
        )
        assert done.stdout.startswith("crosvm-py ")


def test_words_and_status_arrive_as_they_are(program: Path, intruders: Path) -> None:
    done = run(program, intruders, "run", "a b", "*", "-p", "'$HOME'")
    assert done.returncode != 0
    assert "unexpected argument '*'" in done.stderr


def test_program_without_a_python_says_where_to_install_it(tmp_path: Path) -> None:
    done = run(Path(shutil.copy(SCRIPT, tmp_path)), tmp_path, "version")
    assert (done.returncode, done.stdout) == (1, "")
    assert f"no python3 in {tmp_path}: install it in a virtual environment" in done.stderr


def test_first_command_makes_the_bundle_and_the_next_uses_it(
    copied: Path, intruders: Path, tmp_path: Path
) -> None:
    packages = Path(sysconfig.get_path("purelib", "venv", vars={"base": str(copied.parent.parent)}))
    file = packages / "crosvm_py" / "__pycache__" / Path(bundle.FILE).name
    assert not file.exists()
    first = run(copied, intruders, "version")
    made = file.stat()
    second = run(copied, intruders, "version")
    assert first.stdout == second.stdout
    assert (first.stderr, second.stderr) == ("", "")
    assert file.stat().st_mtime_ns == made.st_mtime_ns


@pytest.mark.kvm
@pytest.mark.skipif(shutil.which("strace") is None, reason="needs strace")
def test_start_makes_few_system_calls_before_the_guest_runs(copied: Path, tmp_path: Path) -> None:
    run(copied, tmp_path, "version")  # makes the bundle
    guest = build_guest("hello", tmp_path)
    calls = tmp_path / "calls"
    environment = {"HOME": str(tmp_path), "PATH": os.defpath}
    for _ in range(2):  # the first run compiles the policies
        subprocess.run(
            ["strace", "-f", "-o", calls, copied, "run", "-m", "16", guest],
            env=environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            check=True,
            timeout=60,
        )
    before, _, _ = calls.read_text().partition("KVM_RUN")
    assert len(before.splitlines()) < MOST_CALLS


def test_edited_source_of_an_installed_program_counts_at_once(
    copied: Path, intruders: Path
) -> None:
    run(copied, intruders, "version")
    packages = Path(sysconfig.get_path("purelib", "venv", vars={"base": str(copied.parent.parent)}))
    output = packages / "crosvm_py" / "cli" / "output.py"
    output.write_text(f"{output.read_text()}\nraise SystemExit('edited')\n")
    assert "edited" in run(copied, intruders, "version").stderr


@pytest.mark.parametrize("name", ["cloud-hypervisor", "ch-remote"])
def test_program_of_cloud_hypervisor_is_ours_by_its_name(
    program: Path, tmp_path: Path, name: str
) -> None:
    script = Path(shutil.copy(ROOT / "bin" / name, program.parent))
    (tmp_path / name).symlink_to(program)
    for path in (script, tmp_path / name):
        run = subprocess.run([path, "--version"], capture_output=True, text=True, check=True)
        assert run.stdout.startswith(f"{name} v51.1.0-crosvm-py-")
