# SPDX-License-Identifier: BSD-3-Clause
"""What a run keeps of the inherited descriptors and variables; programs it starts get none."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Final

import pytest

from crosvm_py.config import NetworkSpec
from crosvm_py.inherited import close_unused, drop_inherited
from crosvm_py.net import passt
from sys_util.environment import forget_environment
from tests.support.processes import in_child

ROOT: Final = Path(__file__).parents[2]
SECRET: Final = "an-open-sesame"
ENVIRONMENT: Final = {
    "PATH": os.defpath,
    "HOME": "/root",
    "TOKEN": SECRET,
    "A": "",
    "B": "x",
    "PATHS": SECRET,
    "PAT": SECRET,
    "path": SECRET,
    "LONG": SECRET * 5000,
    "HOME2": SECRET,
    "UMLAUT\udcff": SECRET + "\udcfe",
}
START: Final = f"""
import os, sys
sys.path[:0] = {[str(ROOT)]!r}
from crosvm_py.inherited import drop_inherited
drop_inherited()
"""


def after_the_start(script: str) -> str:
    """Run a program whose first step is what a run begins with."""
    command = [sys.executable, "-I", "-c", START + script]
    done = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, check=True)
    return done.stdout.strip()


def test_environment_is_overwritten_where_the_kernel_put_it() -> None:
    left = "print(sorted(filter(None, open('/proc/self/environ', 'rb').read().split(b'\\0'))))"
    kept = f"[b'HOME=/root', b'PATH={os.defpath}']"
    assert after_the_start(left) == kept


def test_python_and_the_c_library_agree_on_what_is_left() -> None:
    show = "print(sorted(os.environ), sorted(os.environb), flush=True)"
    ask = f"{show}; os.execv('/usr/bin/env', ['env'])"
    names, *programs = after_the_start(ask).splitlines()
    assert names == "['HOME', 'PATH'] [b'HOME', b'PATH']"
    assert sorted(programs) == ["HOME=/root", f"PATH={os.defpath}"]


def test_variable_can_be_set_afterwards() -> None:
    ask = "os.environ['NEW'] = 'x'; os.execv('/usr/bin/env', ['env'])"
    assert "NEW=x" in after_the_start(ask).splitlines()


def test_empty_environment_is_none() -> None:
    def forget() -> list[str]:
        os.environ.clear()
        forget_environment({"PATH"})
        return list(os.environ)

    assert in_child(forget) == "[]"


@pytest.fixture
def inheritable() -> int:
    fd = os.dup(2)
    os.set_inheritable(fd, True)
    return fd


def test_program_gets_no_descriptor_but_the_standard_ones(inheritable: int) -> None:
    def execute() -> str:
        drop_inherited()
        assert os.fstat(inheritable)  # still ours
        return subprocess.run(
            ["ls", "/proc/self/fd"], close_fds=False, capture_output=True, text=True, check=True
        ).stdout

    # The last one is the directory that it looks at.
    assert in_child(execute).split() == ["0", "1", "2", "3"]
    os.close(inheritable)


def test_descriptor_that_no_option_names_is_closed_when_all_are_open(inheritable: int) -> None:
    def start() -> bool:
        drop_inherited()
        own = os.dup(2)
        close_unused(set(range(1024)) - {inheritable})
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.fstat(inheritable)
        close_unused([])  # does nothing the second time: the numbers may belong to other files now
        return os.fstat(own) is not None

    assert in_child(start) == "True"
    os.close(inheritable)


def test_passt_gets_its_socket_and_nothing_that_we_inherited(
    inheritable: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = tmp_path / "seen"
    program = tmp_path / "passt"
    program.write_text(f"#!/bin/sh\nls /proc/self/fd >{seen}; env >>{seen}\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.defpath}")
    monkeypatch.setenv("TOKEN", SECRET)

    def start() -> bool:
        drop_inherited()
        return passt.start_passt(NetworkSpec(user=True)) > 2

    assert in_child(start) == "True"
    words = seen.read_text().split()
    # 3 is the socket, and 4 what ls looks at; the shell has its script open where ls has none.
    assert [word for word in words if word.isdigit()] == ["0", "1", "2", "3", "4"]
    assert SECRET not in seen.read_text()
    os.close(inheritable)


def test_every_command_that_starts_a_vm_keeps_to_itself() -> None:
    starters = ("crosvm_py.run import", "plan_run(", "commands.run import run_config")
    found = {
        path.name: "drop_inherited()" in path.read_text()
        for path in (ROOT / "crosvm_py" / "cli" / "commands").glob("*.py")
        if any(starter in path.read_text() for starter in starters)
    }
    assert found == {"run.py": True, "policy_record.py": True, "guest_shell.py": True}
